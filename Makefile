# arena: one Makefile. `make help` lists the targets.

SHELL       := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

# of client/arena.h, where programs read it
VERSION     := $(shell sed -nE 's/^\#define ARENA_VERSION_(MAJOR|MINOR|PATCH) ([0-9]+)$$/\2/p' client/arena.h | paste -sd.)
SOVERSION   := 1
CC          ?= gcc
CXX         ?= g++
PREFIX      ?= /usr
DESTDIR     ?=
LIBDIR      ?= $(PREFIX)/lib/$(shell $(CC) -print-multiarch 2>/dev/null)
SANITIZE    ?=
comma       := ,
B           := build$(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))

WERROR      ?=
WARN        := -Wall -Wextra -Wshadow -Wundef -Wstrict-prototypes -Wmissing-prototypes $(WERROR)
CPPFLAGS    += -I. -D_GNU_SOURCE -DPRODUCT_VERSION='"$(VERSION)"'
CFLAGS      ?= -O2 -g
# What the compiler knows of these is in every build; tests/scripts/hardening.sh looks. The fast paths pay nothing: they have
# no array on their stack, and so no guard. Without them: HARDEN= HARDEN_LD= FORTIFY=
ifeq ($(origin HARDEN),undefined)
HARDEN      := $(shell for flag in -fstack-protector-strong -fstack-clash-protection -fcf-protection -mbranch-protection=standard; \
                 do $(CC) -Werror $$flag -x c -c -o /dev/null /dev/null 2>/dev/null && echo $$flag; done)
endif
HARDEN_LD   ?= -Wl,-z,relro,-z,now,-z,noexecstack
# the C library's checks need an optimising compiler; a sanitizer has its own, and sees less where they are
FORTIFY     ?= $(if $(SANITIZE)$(filter -O0,$(CFLAGS))$(if $(filter -O%,$(CFLAGS)),,none),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3)
ALL_CFLAGS  := -std=gnu11 $(WARN) -fno-strict-aliasing -fvisibility=hidden -pthread $(HARDEN) $(FORTIFY) $(CFLAGS)
LDLIBS      :=
ifneq ($(SANITIZE),)
ALL_CFLAGS  += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer
LDFLAGS     += -fsanitize=$(SANITIZE)
endif

PKG          = $(shell pkg-config --$(1) $(2) 2>/dev/null)

# ---- what is built -----------------------------------------------------------------------------

SHM_SRC     := $(wildcard shm/*.c)
PROTO_SRC   := $(wildcard proto/*.c)
CTL_SRC     := $(wildcard client/ctl/*.c)
CLIENT_SRC  := $(wildcard $(addprefix client/,$(addsuffix /*.c,link alloc own extra debug life)))
DAEMON_MAIN := daemon/arenad.c
DAEMON_SRC  := $(filter-out $(DAEMON_MAIN),$(wildcard daemon/*/*.c))

obj          = $(patsubst %.c,$(B)/obj/%.o,$(1))
SHM_OBJ     := $(call obj,$(SHM_SRC))
PROTO_OBJ   := $(call obj,$(PROTO_SRC))
CLIENT_OBJ  := $(call obj,$(CLIENT_SRC))
CTL_OBJ     := $(call obj,$(CTL_SRC))
DAEMON_OBJ  := $(call obj,$(DAEMON_SRC))
LIB_PIC     := $(patsubst %.c,$(B)/pic/%.o,$(SHM_SRC) $(PROTO_SRC) $(CLIENT_SRC))

DAEMON_LIBS  = $(call PKG,libs,libuv msgpack libsystemd inih)
LIB_LIBS     = $(call PKG,libs,msgpack)
CTL_LIBS     = $(call PKG,libs,msgpack libcjson ncursesw) $(call PKG,libs,libdw) -lm

.PHONY: all
all: ## everything that is installed, into build/
all: $(B)/arenad $(B)/arenactl $(B)/libarena.so $(B)/libarena.a

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(EXTRA_CFLAGS) -fPIE -MMD -MP -c -o $@ $<

# initial-exec: the fast path reads its thread's mcache with one load (0.2 ns; global-dynamic: 2.3)
$(B)/pic/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(EXTRA_CFLAGS) -fPIC -ftls-model=initial-exec -MMD -MP -c -o $@ $<

# nodelete: threads that end call back into it, also after a dlclose
$(B)/libarena.so.$(SOVERSION): $(LIB_PIC) client/libarena.map
	$(CC) $(LDFLAGS) $(HARDEN_LD) -shared -Wl,-soname,libarena.so.$(SOVERSION) -Wl,--version-script=client/libarena.map \
	    -Wl,-z,nodelete -pthread -o $@ $(LIB_PIC) $(LIB_LIBS)
$(B)/libarena.so: $(B)/libarena.so.$(SOVERSION)
	ln -sf libarena.so.$(SOVERSION) $@
$(B)/libarena.a: $(LIB_PIC)
	rm -f $@ && $(AR) rcs $@ $^
$(B)/arenad: $(call obj,$(DAEMON_MAIN)) $(DAEMON_OBJ) $(SHM_OBJ) $(PROTO_OBJ)
	$(CC) $(LDFLAGS) $(HARDEN_LD) -pie -pthread -o $@ $^ $(DAEMON_LIBS)
$(B)/arenactl: $(CTL_OBJ) $(B)/libarena.a
	$(CC) $(LDFLAGS) $(HARDEN_LD) -pie -pthread -o $@ $^ $(CTL_LIBS)

# ---- demo and tests ----------------------------------------------------------------------------
# tests/TIER/X_test.c: unit tests are linked with the tiers' objects, e2e and crash tests with the library as it ships.

UNIT_SRC    := $(wildcard tests/shm/*_test.c tests/proto/*_test.c tests/daemon/*/*_test.c tests/client/*/*_test.c)
E2E_SRC     := $(wildcard tests/e2e/*_test.c tests/crash/*_test.c)
UNIT_TESTS  := $(patsubst tests/%.c,$(B)/tests/%,$(UNIT_SRC))
E2E_TESTS   := $(patsubst tests/%.c,$(B)/tests/%,$(E2E_SRC)) $(addprefix $(B)/tests/,e2e/object_inline_test \
    e2e/steady_inline_test crash/kill_inline_test)
HARNESS_OBJ := $(call obj,tests/e2e/harness.c)
TEST_LIBS    = $(call PKG,libs,cmocka)

CLIENT_TESTS := $(filter $(B)/tests/client/%,$(UNIT_TESTS))
$(filter-out $(CLIENT_TESTS),$(UNIT_TESTS)): $(B)/tests/%: $(B)/obj/tests/%.o $(SHM_OBJ) $(PROTO_OBJ) $(DAEMON_OBJ)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -pthread -o $@ $^ $(DAEMON_LIBS) $(TEST_LIBS)
$(CLIENT_TESTS): $(B)/tests/%: $(B)/obj/tests/%.o $(B)/libarena.a # its inner functions are hidden in the shared library only
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -pthread -o $@ $^ $(LIB_LIBS) $(TEST_LIBS)
$(E2E_TESTS): $(B)/tests/%: $(B)/obj/tests/%.o $(HARNESS_OBJ) $(SHM_OBJ) $(PROTO_OBJ) $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -pthread -o $@ $(filter %.o,$^) -L$(B) -larena -Wl,-rpath,'$$ORIGIN/../..' $(LIB_LIBS) $(TEST_LIBS)

# the same tests with the fast paths compiled into them
$(B)/obj/tests/%_inline_test.o: tests/%_test.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(EXTRA_CFLAGS) -include client/arena_inline.h -MMD -MP -c -o $@ $<

# arenactl's JSON is read by a parser
$(B)/tests/e2e/ctl_test: TEST_LIBS += $(call PKG,libs,libcjson)

# a client that speaks the protocol itself
RAW_TESTS   := $(addprefix $(B)/tests/crash/,hostile_test keep_test monitor_test turn_test hello_test hangup_test pays_test storm_test)
$(RAW_TESTS): $(call obj,tests/crash/raw.c)

RELAY_TESTS := $(addprefix $(B)/tests/crash/,answer_test given_up_test)
$(RELAY_TESTS): $(call obj,tests/crash/relay.c)

# every instruction: single steps, and for the daemon's its core over regions that the test keeps
STEP_TESTS  := $(B)/tests/crash/step_client_test $(B)/tests/crash/step_daemon_test
$(STEP_TESTS): $(call obj,tests/crash/step.c)
$(B)/tests/crash/step_client_test: LDFLAGS += -Wl,-z,now # the linker's work at a first call is no part of an operation
$(B)/tests/crash/step_daemon_test: $(DAEMON_OBJ)
$(B)/tests/crash/step_daemon_test: LIB_LIBS = $(DAEMON_LIBS)

.PHONY: crash
crash: ## kills at every instruction of client and daemon, not a sample
	@$(MAKE) --no-print-directory all $(STEP_TESTS)
	@for test in $(STEP_TESTS); do ARENA_BUILD=$(B) CRASH=all $$test || exit 1; done

# tests/fuzz/X_fuzz.c: a target; `make test` replays its kept corpus, `make fuzz` looks for more
REPLAYS     := $(patsubst tests/fuzz/%_fuzz.c,$(B)/tests/fuzz/%_replay,$(wildcard tests/fuzz/*_fuzz.c))
$(B)/tests/fuzz/%_replay: $(B)/obj/tests/fuzz/%_fuzz.o $(B)/obj/tests/fuzz/replay.o $(PROTO_OBJ)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -pthread -o $@ $^ $(LIB_LIBS)

# core_fuzz.c stands in for the loop, threads and what is seen of processes: all of the daemon but those
FUZZ_CORE   := $(filter-out $(addprefix daemon/,shell/server.c shell/collector.c shell/backing.c shell/strays.c os/sched.c shell/peer.c shell/allow.c),$(DAEMON_SRC)) $(SHM_SRC)
$(B)/tests/fuzz/core_replay: $(call obj,tests/fuzz/core_fuzz.c tests/fuzz/replay.c $(FUZZ_CORE)) $(PROTO_OBJ)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -pthread -o $@ $^ $(DAEMON_LIBS)

# tests/explore/X_test.c: the product's code with the hooks of the explorer in place of shm/atomic.h, and never with a
# sanitizer (stacks are copied and switched). What the scenarios never call may be missing
EXPLORERS   := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/explore/*_test.c))
EXPLORE_SRC := $(addprefix tests/explore/,explore.c search.c suite.c wire.c world.c) $(SHM_SRC) \
               $(addprefix client/,$(addprefix link/,cancel.c hooks.c reason.c returns.c) $(addprefix alloc/,lease.c large.c keep.c mcache.c object.c) own/tx.c debug/site.c extra/stack.c) \
               $(addprefix daemon/,$(addprefix core/,core.c clients.c mcentral.c mheap.c pagealloc.c) $(addprefix passes/,reclaim.c sweep.c scavenge.c))
EXPLORE_OBJ := $(patsubst %.c,$(B)/explore/%.o,$(EXPLORE_SRC))
$(B)/explore/tests/explore/explore.o $(B)/explore/tests/explore/search.o: EXPLORE_FLAGS := -DEX_ENGINE -O2
$(B)/explore/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -DARENA_EXPLORE -DTAG_COUNT=32 -DHAZARD_COUNT=2 -O1 $(EXPLORE_FLAGS) -include tests/explore/hooks.h -std=gnu11 $(WARN) \
	    -fno-strict-aliasing -ffunction-sections -fno-pie -g -MMD -MP -c -o $@ $<
$(B)/tests/explore/%_test: $(B)/explore/tests/explore/%_test.o $(EXPLORE_OBJ)
	@mkdir -p $(@D)
	$(CC) -no-pie -Wl,--gc-sections -Wl,--unresolved-symbols=ignore-in-object-files -o $@ $^ $(TEST_LIBS)

# tests/model: the whole API at random against a shadow; one program, which is also each of its processes
MODEL       := $(B)/tests/model/model
$(MODEL): $(call obj,$(wildcard tests/model/*.c)) $(HARNESS_OBJ) $(SHM_OBJ) $(PROTO_OBJ) $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -rdynamic -pthread -o $@ $(filter %.o,$^) -L$(B) -larena -Wl,-rpath,'$$ORIGIN/../..' $(LIB_LIBS) $(TEST_LIBS)

.PHONY: model
model: ## the model of the whole API for a minute: SEED= MODEL=
model: all $(MODEL)
	@ARENA_BUILD=$(B) $(MODEL)

mutants: ## defects put back, which the tests must find: MUTANTS= patches (tests/mutants/*.patch)
	@tests/mutants/check
	@tests/mutants/run $(MUTANTS)

# tests/systemd: a client for the tests of the service
SYSTEMD_TESTS := $(B)/tests/systemd/holder
$(SYSTEMD_TESTS): $(B)/tests/%: $(B)/obj/tests/%.o $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -pthread -o $@ $< -L$(B) -larena -Wl,-rpath,'$$ORIGIN/../..'

.PHONY: explore
explore: ## every interleaving of the lock-free protocols, the larger scenarios too
	@$(MAKE) --no-print-directory $(EXPLORERS)
	@for explorer in $(EXPLORERS); do EXPLORE=$${EXPLORE-all} $$explorer || exit 1; done

EXAMPLES    := $(patsubst client/examples/%.c,$(B)/examples/%,$(wildcard client/examples/*.c))
$(B)/examples/%: client/examples/%.c $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) -std=gnu11 $(WARN) $(CFLAGS) -D_GNU_SOURCE -Iclient $(LDFLAGS) -pthread -o $@ $< -L$(B) -larena -Wl,-rpath,'$$ORIGIN/..'

.PHONY: tests
tests: $(UNIT_TESTS) $(E2E_TESTS) $(MODEL) $(REPLAYS) $(EXPLORERS) $(EXAMPLES) $(SYSTEMD_TESTS) all

.PHONY: demo demo-run
demo: ## the main job on real input: DIR= WORKERS=
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory demo-run
demo-run: all $(EXAMPLES)
	@ARENA_BUILD=$(B) client/examples/demo.sh

DEPS        := gcc libc6-dev pkg-config libuv1-dev libmsgpack-dev libcmocka-dev libsystemd-dev libinih-dev uthash-dev \
               libcjson-dev libncurses-dev libdw-dev scdoc
DEPS_ALL    := $(DEPS) g++ clang llvm clang-format clang-tidy cppcheck valgrind libclang-rt-14-dev libboost-dev libjemalloc2 \
               libmimalloc2.0 libtcmalloc-minimal4 gnuplot-nox debhelper lintian abigail-tools systemd dbus \
               libnss-systemd strace gdb mandoc
DEPS_DEB    := $(filter-out libcmocka-dev,$(DEPS)) debhelper lintian
SUDO         = $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# installs what dpkg does not have yet
install_deps = missing=; for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || \
               missing="$$missing $$p"; done; [ -z "$$missing" ] || { echo "installing:$$missing"; \
               $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive \
               apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }

.PHONY: deps deps-all
deps: ## install Debian's packages for build, demo and test
	@$(call install_deps,$(DEPS))
deps-all: ## the same for bench, packaging and every check
	@$(call install_deps,$(DEPS_ALL))

.PHONY: test test-run
test: ## what CI runs: build, unit, end-to-end and crash tests
	@$(MAKE) --no-print-directory deps
	@$(MAKE) --no-print-directory test-run
test-run: tests
	$(if $(SANITIZE),@echo "not run with a sanitizer: tests/scripts look at the build as it ships")
	@ARENA_BUILD=$(B) tests/run $(MODEL) tests/systemd/run.sh $(E2E_TESTS) $(EXPLORERS) $(UNIT_TESTS) $(REPLAYS) \
	    $(if $(SANITIZE),,$(wildcard tests/scripts/*.sh))

# ---- every check -------------------------------------------------------------------------------
# `make test-all` is `make test` and all of these; each can be run alone. A test that takes longer than a run of CI may is
# added to LATER: a program below tests/ without its build folder, or a script.

LATER       ?=
ALL_TARGETS := test-later test-address test-thread test-clang lint test-valgrind mutants
# where threads of one process meet; e2e/stack_test copies stacks, kill and restart tests kill what is watched, and of
# e2e/fork_test's children by _Fork and clone ThreadSanitizer is not told: it takes their locks for their parent's
THREAD_TESTS = $(UNIT_TESTS) $(addprefix $(B)/tests/e2e/,ring_test object_test attach_test thread_test escape_test)

.PHONY: test-all $(ALL_TARGETS)
test-all: ## every check: make test, long tests, sanitizers, clang, lint, valgrind, mutants, AArch64, systemd, packages
	@$(MAKE) --no-print-directory deps-all
	@$(MAKE) --no-print-directory test-run
	@for target in $(ALL_TARGETS); do echo "== $$target"; $(MAKE) --no-print-directory $$target || exit 1; done
	@echo "every check passed"

test-later: ## the tests that take long
test-later: tests $(patsubst %.c,$(B)/%,$(filter %.c,$(LATER)))
	@[ -z "$(strip $(LATER))" ] || ARENA_BUILD=$(B) tests/run $(patsubst %.c,$(B)/%,$(LATER))
test-address: ## make test with AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) --no-print-directory SANITIZE=address,undefined EXTRA_CFLAGS=-fno-sanitize-recover=all test-run
test-thread: ## unit and race tests with ThreadSanitizer
	@$(MAKE) --no-print-directory SANITIZE=thread test-thread-run
test-thread-run: tests
	@ARENA_BUILD=$(B) TSAN_OPTIONS=halt_on_error=1 tests/run $(MODEL) $(THREAD_TESTS)
test-clang: ## all of it with clang, warnings being errors
	@$(MAKE) --no-print-directory CC=clang CXX=clang++ B=build-clang WERROR=-Werror tests
VALGRIND_E2E = $(B)/tests/e2e/object_test $(B)/tests/e2e/grow_test
# the registers as they are at each access: daemon/gc_test goes on after a fault
test-valgrind: ## the daemon's unit tests and the library's objects under valgrind
test-valgrind: $(UNIT_TESTS) $(VALGRIND_E2E) all
	@export ARENA_BUILD=$(B) TEST_RUNNER=valgrind; for test in $(filter $(B)/tests/daemon/%,$(UNIT_TESTS)) $(VALGRIND_E2E); do echo "$$test"; \
	    CMOCKA_TEST_ABORT=1 valgrind -q --error-exitcode=9 --leak-check=full --show-leak-kinds=definite \
	    --vex-iropt-register-updates=allregs-at-mem-access --suppressions=tests/lint/valgrind.supp $$test \
	    >$(B)/valgrind.log 2>&1 || { cat $(B)/valgrind.log; exit 1; }; done

LINT_SRC     = $(SHM_SRC) $(PROTO_SRC) $(CLIENT_SRC) $(CTL_SRC) $(DAEMON_MAIN) $(DAEMON_SRC)
lint: ## cppcheck and clang-tidy
	@cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
    --suppress=missingIncludeSystem --suppress=nullPointerRedundantCheck -I. \
	    --include=tests/lint/cppcheck.h -D_GNU_SOURCE -DPRODUCT_VERSION='"$(VERSION)"' $(LINT_SRC)
	@printf '%s\n' $(LINT_SRC) | xargs -n 1 -P "$$(nproc)" sh -c 'clang-tidy --quiet --warnings-as-errors="*" "$$0" -- \
	    -I. -D_GNU_SOURCE -DPRODUCT_VERSION=\"$(VERSION)\" -std=gnu11 2>/dev/null || { echo "$$0: clang-tidy"; exit 1; }'

FUZZ_SECONDS ?= 60
FUZZ_COVERED  = $(addprefix daemon/,shell/requests.c core/clients.c core/mcentral.c passes/reclaim.c passes/scavenge.c passes/gc.c shell/connection.c) shm/root.c
FUZZ_CC       = clang $(CPPFLAGS) -std=gnu11 $(WARN) -g -O1
.PHONY: fuzz
fuzz: ## libFuzzer on every target: FUZZ_SECONDS= each (clang); then how much of the daemon the core's inputs reach (llvm-cov)
	@mkdir -p $(B)/fuzz
	@for target in $(patsubst tests/fuzz/%_fuzz.c,%,$(wildcard tests/fuzz/*_fuzz.c)); do \
	    more=; [ $$target != core ] || more="$(FUZZ_CORE) $(DAEMON_LIBS)"; \
	    $(FUZZ_CC) -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
	        -o $(B)/fuzz/$$target tests/fuzz/$${target}_fuzz.c $(PROTO_SRC) $$more $(LIB_LIBS) && \
	    mkdir -p $(B)/fuzz/corpus-$$target && \
	    $(B)/fuzz/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1 \
	        -artifact_prefix=$(B)/fuzz/$$target- $(B)/fuzz/corpus-$$target tests/fuzz/corpus/$$target || exit 1; done
	@$(MAKE) --no-print-directory fuzz-coverage

# by the kept inputs and by those that `make fuzz` has found here
.PHONY: fuzz-coverage
fuzz-coverage:
	@mkdir -p $(B)/fuzz/corpus-core
	@$(FUZZ_CC) -fprofile-instr-generate -fcoverage-mapping -o $(B)/fuzz/core-covered tests/fuzz/core_fuzz.c tests/fuzz/replay.c \
	    $(PROTO_SRC) $(FUZZ_CORE) $(DAEMON_LIBS) $(LIB_LIBS)
	@for corpus in tests/fuzz/corpus/core $(B)/fuzz/corpus-core; do [ -z "$$(ls $$corpus)" ] || \
	    LLVM_PROFILE_FILE=$(B)/fuzz/core-%p.profraw $(B)/fuzz/core-covered $$corpus >/dev/null 2>$(B)/fuzz/core-covered.log || \
	    { tail -3 $(B)/fuzz/core-covered.log; exit 1; }; done
	@llvm-profdata merge -o $(B)/fuzz/core.profdata $(B)/fuzz/core-*.profraw && rm $(B)/fuzz/core-*.profraw
	@llvm-cov report $(B)/fuzz/core-covered -instr-profile=$(B)/fuzz/core.profdata $(FUZZ_COVERED) | \
	    awk '/^TOTAL|\.c / { printf "%-22s %5d lines, %5d missed: %7s\n", $$1, $$8, $$9, $$10 }'

# ---- AArch64 -----------------------------------------------------------------------------------
# Cross-compiled with Debian's own arm64 libraries, which are unpacked into a folder (tests/aarch64/sysroot.sh): no foreign
# architecture is added to the machine. Run by qemu's emulator of user programs, which shows few of the reorderings that
# such a processor may do; where order matters is a label, and tests/scripts/labels.sh looks.

DEPS_AARCH64 := gcc-aarch64-linux-gnu qemu-user-static
DEPS_ALL     += $(DEPS_AARCH64)
ALL_TARGETS  += test-aarch64
AARCH64      := build-aarch64
SYSROOT      := $(abspath $(AARCH64)/sysroot)
SYSROOT_DEPS := $(filter-out gcc pkg-config scdoc,$(DEPS))
EMULATED_TESTS = $(filter-out $(B)/tests/daemon/%,$(UNIT_TESTS)) $(addprefix $(B)/tests/daemon/,passes/gc_test core/pagealloc_test passes/scavenge_test) \
               tests/aarch64/pair.sh

.PHONY: test-aarch64 test-aarch64-run
test-aarch64: ## unit tests, and two processes with a daemon, on AArch64 under qemu-user
	@$(call install_deps,$(DEPS_AARCH64))
	@tests/aarch64/sysroot.sh $(SYSROOT) $(SYSROOT_DEPS)
	@PKG_CONFIG_SYSROOT_DIR=$(SYSROOT) PKG_CONFIG_LIBDIR=$(SYSROOT)/usr/lib/aarch64-linux-gnu/pkgconfig:$(SYSROOT)/usr/share/pkgconfig \
	    $(MAKE) --no-print-directory B=$(AARCH64) CC='aarch64-linux-gnu-gcc --sysroot=$(SYSROOT)' AR=aarch64-linux-gnu-ar \
	    test-aarch64-run
test-aarch64-run: all $(filter $(B)/%,$(EMULATED_TESTS)) $(B)/tests/aarch64/pair
	@ARENA_BUILD=$(B) TEST_RUNNER='qemu-aarch64-static -L $(SYSROOT)' tests/run $(EMULATED_TESTS)
$(B)/tests/aarch64/pair: $(B)/obj/tests/aarch64/pair.o $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -pthread -o $@ $< -L$(B) -larena -Wl,-rpath,'$$ORIGIN/../..' $(LIB_LIBS)

# ---- soak and rebuild --------------------------------------------------------------------------

$(B)/tests/crash/soak: $(B)/obj/tests/crash/soak.o $(HARNESS_OBJ) $(SHM_OBJ) $(PROTO_OBJ) $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -pthread -o $@ $(filter %.o,$^) -L$(B) -larena -Wl,-rpath,'$$ORIGIN/../..' $(LIB_LIBS) $(TEST_LIBS)

.PHONY: soak
soak: ## the model, and lists committed under kills beside it, for as long as asked: MINUTES= SEED=
soak: all $(B)/tests/crash/soak $(MODEL)
	@export ARENA_BUILD=$(B) MINUTES=$${MINUTES:-1}; $(B)/tests/crash/soak & $(MODEL); rc=$$?; wait $$! && exit $$rc

.PHONY: storm
storm: ## hostile users, restarts, and honest clients beside them, for as long as asked: MINUTES= SEED=
storm: all $(B)/tests/crash/storm_test
	@ARENA_BUILD=$(B) MINUTES=$${MINUTES:-1} $(B)/tests/crash/storm_test

$(B)/tests/crash/rebuild: $(B)/obj/tests/crash/rebuild.o $(SHM_OBJ) $(PROTO_OBJ) $(DAEMON_OBJ)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -pthread -o $@ $^ $(DAEMON_LIBS)

.PHONY: bench-rebuild
bench-rebuild: ## how long a daemon that starts takes to rebuild what it knows: SPANS= (a million)
bench-rebuild: $(B)/tests/crash/rebuild
	@$(B)/tests/crash/rebuild $(SPANS)

# ---- bench -------------------------------------------------------------------------------------
# A worker program a peer, of the same sources, linked with the peer's shared library; a peer whose library is missing has
# no worker, and the report says so. BENCH= rows or groups, PEERS=, REPS=, RUN_MS=, MINUTES=, OUT=: see tests/bench/bench.sh

BENCH_PEERS := arena inline glibc jemalloc mimalloc tcmalloc boost ring
BENCH_SRC   := worker speed space service bench
BENCH_DIR   := $(B)/bench
BENCH_CC     = $(CC) $(CPPFLAGS) $(ALL_CFLAGS) -fno-builtin -fno-plt -MMD -MP
bench_lib_jemalloc := -l:libjemalloc.so.2
bench_lib_mimalloc := -l:libmimalloc.so.2.0
bench_lib_tcmalloc := -l:libtcmalloc_minimal.so.4
bench_file_glibc := libc.so
bench_file_jemalloc := libjemalloc.so
bench_file_mimalloc := libmimalloc.so
bench_file_tcmalloc := libtcmalloc_minimal.so
bench_objs   = $(patsubst %,$(BENCH_DIR)/obj-$(1)/%.o,$(BENCH_SRC))

define bench_peer
$(BENCH_DIR)/obj-$(1)/%.o: tests/bench/%.c
	@mkdir -p $$(@D)
	$$(BENCH_CC) $(2) -c -o $$@ $$<
endef
define bench_private
$(call bench_peer,$(1),-DPEER_PRIVATE -DPEER_LIBRARY='"$(bench_file_$(1))"')
$(BENCH_DIR)/worker-$(1): $(call bench_objs,$(1)) $(BENCH_DIR)/obj-$(1)/peer_private.o
	$$(CC) $$(LDFLAGS) -pthread -Wl,-z,now -Wl,--no-as-needed -o $$@ $$^ $(bench_lib_$(1)) -lm
endef
$(foreach peer,glibc jemalloc mimalloc tcmalloc,$(eval $(call bench_private,$(peer))))
define bench_arena
$(call bench_peer,$(1),-DPEER_ARENA $(2))
$(BENCH_DIR)/worker-$(1): $(call bench_objs,$(1)) $(BENCH_DIR)/obj-$(1)/peer_arena.o $(SHM_OBJ) $(PROTO_OBJ) $(B)/libarena.so
	$$(CC) $$(LDFLAGS) -pthread -Wl,-z,now -o $$@ $$(filter %.o,$$^) -L$(B) -larena -Wl,-rpath,'$$$$ORIGIN/..' \
	    $$(LIB_LIBS) -lm
endef
$(eval $(call bench_arena,arena))
$(eval $(call bench_arena,inline,-DPEER_INLINE))
$(eval $(call bench_peer,boost,-DPEER_BOOST))
$(eval $(call bench_peer,ring,-DPEER_RING))
$(BENCH_DIR)/worker-ring: $(call bench_objs,ring) $(BENCH_DIR)/obj-ring/peer_ring.o
	$(CC) $(LDFLAGS) -pthread -o $@ $^ -lm
$(BENCH_DIR)/libbench_boost.so: tests/bench/peer_boost.cc
	@mkdir -p $(@D)
	$(CXX) -O2 -g -std=c++17 -fPIC -shared -o $@ $<
$(BENCH_DIR)/worker-boost: $(call bench_objs,boost) $(BENCH_DIR)/obj-boost/peer_boost.o $(BENCH_DIR)/libbench_boost.so
	$(CC) $(LDFLAGS) -pthread -Wl,-z,now -o $@ $(filter %.o,$^) -L$(BENCH_DIR) -lbench_boost -Wl,-rpath,'$$ORIGIN' -lm

.PHONY: bench bench-workers
bench: ## side by side with other allocators: BENCH= PEERS= REPS= RUN_MS= MINUTES= OUT=
bench: all bench-workers
	@ARENA_BUILD=$(B) BENCH='$(BENCH)' PEERS='$(PEERS)' REPS='$(REPS)' RUN_MS='$(RUN_MS)' MINUTES='$(MINUTES)' \
	    WAIT_MS='$(WAIT_MS)' NICE='$(NICE)' OUT='$(OUT)' tests/bench/bench.sh
bench-workers: all
	@mkdir -p $(BENCH_DIR)
	@for peer in $(BENCH_PEERS); do $(MAKE) --no-print-directory $(BENCH_DIR)/worker-$$peer >$(BENCH_DIR)/make-$$peer.log 2>&1 \
	    || { rm -f $(BENCH_DIR)/worker-$$peer; [ $$peer != arena ] || { cat $(BENCH_DIR)/make-arena.log; exit 1; }; }; done

# ---- stack, escape, buffers ----------------------------------------------------------------------

# arenactl escape names functions and lines with libdw, where it is installed
$(B)/obj/client/ctl/escape_names.o: override EXTRA_CFLAGS += $(if $(call PKG,libs,libdw),-DHAVE_LIBDW)

# their functions are named in reports
$(B)/tests/e2e/escape_test $(B)/tests/e2e/profile_test: LDFLAGS += -rdynamic
$(B)/obj/tests/e2e/escape_test.o $(B)/obj/tests/e2e/profile_test.o: override EXTRA_CFLAGS += -fno-optimize-sibling-calls
$(B)/tests/e2e/profile_test: TEST_LIBS += $(call PKG,libs,libcjson)

$(B)/bench/stack $(B)/bench/grow $(B)/bench/profile: $(B)/bench/%: tests/bench/%.c client/arena.h $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -std=gnu11 $(WARN) -O2 -g $(LDFLAGS) -pthread -o $@ $< -L$(B) -larena -Wl,-rpath,'$$ORIGIN/..'

.PHONY: bench-stack bench-grow bench-profile
bench-profile: ## what ARENA_PROFILE=on costs at most
bench-profile: all $(B)/bench/profile
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh 64M tests/bench/profile.sh $(B)/bench/profile
bench-stack: ## frames beside heap objects; the hot-split loop beside a segmented stack
bench-stack: all $(B)/bench/stack
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh 64M $(B)/bench/stack
bench-grow: ## buffers beside realloc; batches; transactions beside publishing
bench-grow: all $(B)/bench/grow
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh 4G $(B)/bench/grow

# ---- collector, tiny objects ----------------------------------------------------------------------

$(B)/bench/collect $(B)/bench/tiny: $(B)/bench/%: tests/bench/%.c client/arena.h $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -std=gnu11 $(WARN) -O2 -g $(LDFLAGS) -pthread -o $@ $< -L$(B) -larena -Wl,-rpath,'$$ORIGIN/..' $(CTL_LIBS)

GC_MIB      ?= 1024
FILES       ?= $(wildcard /usr/share/iso-codes/json/*.json)
.PHONY: bench-gc bench-tiny
bench-gc: ## seconds that a collection takes for each GiB: GC_MIB=
bench-gc: all $(B)/bench/collect
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh $$(( $(GC_MIB) * 3 / 2 + 128 ))M $(B)/bench/collect $(GC_MIB)
bench-tiny: ## objects under 16 bytes in JSON documents: FILES= (those of Debian's iso-codes)
bench-tiny: all $(B)/bench/tiny
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh 2G $(B)/bench/tiny $(FILES)

# ---- generated ---------------------------------------------------------------------------------

.PHONY: sizeclasses
sizeclasses: ## write shm/sizeclass_table.h anew, after a change of its generator
	@mkdir -p $(B)/gen
	$(CC) -O1 -o $(B)/gen/mksizeclasses shm/gen/mksizeclasses.c
	$(B)/gen/mksizeclasses >$(B)/gen/sizeclass_table.h && mv $(B)/gen/sizeclass_table.h shm/sizeclass_table.h

# ---- installing, packages, the service -----------------------------------------------------------------------------------

SYSCONFDIR  ?= /etc
ALL_TARGETS += test-systemd test-deb
.PHONY: install man deb symbols test-systemd test-deb
install: ## programs, library, header, units, manual: DESTDIR= PREFIX=
install: all $(if $(shell command -v scdoc),man)
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' LIBDIR='$(LIBDIR)' SYSCONFDIR='$(SYSCONFDIR)' VERSION='$(VERSION)' \
	    packaging/install $(B)

MAN_PAGES   := $(patsubst packaging/man/%.scd,$(B)/man/%,$(wildcard packaging/man/*.scd))
man: ## the manual, from packaging/man/*.scd (scdoc)
man: $(MAN_PAGES)
$(B)/man/%: packaging/man/%.scd
	@mkdir -p $(@D)
	scdoc <$< >$@
	@# each other name before the dash is a page that refers to this one
	@sed -n '/^# NAME/,/^# /s/^\(.*[^ ]\) *- .*/\1/p' $< | tr -d ' \\' | tr , '\n' | while read -r name; do \
	    [ "$$name$(suffix $*)" = $* ] || echo ".so man$(patsubst .%,%,$(suffix $*))/$*" >"$(@D)/$$name$(suffix $*)"; done

# The tracked tree and packaging/debian as its debian/, in build/deb; the packages stand there afterwards.
deb: ## Debian packages, into build/deb
	@$(call install_deps,$(DEPS_DEB))
	@rm -rf $(B)/deb && mkdir -p $(B)/deb/arena-$(VERSION)
	@{ git ls-files -z 2>/dev/null || find . -name 'build*' -prune -o -name .git -prune -o -type f -print0; } | \
	    xargs -0 cp --parents -t $(B)/deb/arena-$(VERSION)
	@mv $(B)/deb/arena-$(VERSION)/packaging/debian $(B)/deb/arena-$(VERSION)/debian
	cd $(B)/deb/arena-$(VERSION) && env -u MAKEFLAGS -u MAKELEVEL -u CC dpkg-buildpackage -b -us -uc >../build.log 2>&1 || \
	    { tail -n 40 ../build.log; exit 1; }
	@ls $(B)/deb/*.deb
	lintian --fail-on error $(B)/deb/*.changes

SYMBOLS     := packaging/debian/libarena1.symbols
symbols: ## note what the library exports now in the kept list, which tests/scripts/symbols.sh compares
symbols: $(B)/libarena.so
	@tests/scripts/symbols.sh --write $(B)/libarena.so.$(SOVERSION) $(VERSION)

test-systemd: ## the service under a real systemd (root; Debian's systemd)
test-systemd: all $(SYSTEMD_TESTS)
	@ARENA_BUILD=$(B) TEST_SYSTEMD=required tests/run tests/systemd/run.sh
test-deb: ## packages: install, upgrade under clients, remove, purge, under a real systemd
test-deb: all $(SYSTEMD_TESTS) deb
	@ARENA_BUILD=$(B) TEST_SYSTEMD=required tests/run tests/systemd/run_deb.sh

-include $(shell find $(B) -path $(B)/deb -prune -o -name '*.d' -type f -print 2>/dev/null)

.SECONDARY:

.PHONY: clean
clean: ## remove what was built
	rm -rf build build-*

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+: ##' $(MAKEFILE_LIST) | sed 's/: ## /\t/' | expand -t 16
