# ---- demo and tests ----------------------------------------------------------------------------
# tests/TIER/X_test.c: unit tests are linked with the tiers' objects, e2e and crash tests with the library as it ships.

UNIT_SRC    := $(wildcard tests/shm/*_test.c tests/proto/*_test.c tests/daemon/*/*_test.c tests/client/*/*_test.c)
E2E_SRC     := $(wildcard tests/e2e/*_test.c tests/crash/*_test.c)
UNIT_TESTS  := $(patsubst tests/%.c,$(B)/tests/%,$(UNIT_SRC))
E2E_TESTS   := $(patsubst tests/%.c,$(B)/tests/%,$(E2E_SRC)) $(addprefix $(B)/tests/,e2e/object_inline_test \
    e2e/steady_inline_test crash/kill_inline_test)
HARNESS_OBJ := $(call obj,tests/e2e/harness.c)
TEST_LIBS    = $(call PKG,libs,cmocka)
BESIDE_LIB   = -L$(B) -larena -Wl,-rpath,'$$ORIGIN/../..'

.PHONY: tests
tests: $(UNIT_TESTS) $(E2E_TESTS) $(EXAMPLES) all

CLIENT_TESTS := $(filter $(B)/tests/client/%,$(UNIT_TESTS))
$(filter-out $(CLIENT_TESTS),$(UNIT_TESTS)): $(B)/tests/%: $(B)/obj/tests/%.o $(SHM_OBJ) $(PROTO_OBJ) $(DAEMON_OBJ)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $^ $(DAEMON_LIBS) $(TEST_LIBS)
$(CLIENT_TESTS): $(B)/tests/%: $(B)/obj/tests/%.o $(B)/libarena.a # its inner functions are hidden in the shared library only
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $^ $(LIB_LIBS) $(TEST_LIBS)
$(E2E_TESTS): $(B)/tests/%: $(B)/obj/tests/%.o $(HARNESS_OBJ) $(SHM_OBJ) $(PROTO_OBJ) $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $(filter %.o,$^) $(BESIDE_LIB) $(LIB_LIBS) $(TEST_LIBS)

# the same tests with the fast paths compiled into them
$(B)/obj/tests/%_inline_test.o: tests/%_test.c $(B)/flags
	@mkdir -p $(@D)
	$(COMPILE) -include client/arena_inline.h -c -o $@ $<

# arenactl's JSON is read by a parser
$(B)/tests/e2e/ctl_test $(B)/tests/e2e/profile_test: TEST_LIBS += $(call PKG,libs,libcjson)

# their functions are named in reports
$(B)/tests/e2e/escape_test $(B)/tests/e2e/profile_test: ALL_LDFLAGS += -rdynamic
# memory is short when the test says so
$(B)/tests/daemon/passes/gc_test: ALL_LDFLAGS += -Wl,--wrap=malloc
$(B)/obj/tests/e2e/escape_test.o $(B)/obj/tests/e2e/profile_test.o: override EXTRA_CFLAGS += -fno-optimize-sibling-calls

# a client that speaks the protocol itself
RAW_TESTS   := $(addprefix $(B)/tests/crash/,hostile_test keep_test monitor_test turn_test hello_test hangup_test pays_test storm_test)
$(RAW_TESTS): $(call obj,tests/crash/raw.c)

RELAY_TESTS := $(addprefix $(B)/tests/crash/,answer_test given_up_test)
$(RELAY_TESTS): $(call obj,tests/crash/relay.c)

# every instruction: single steps, and for the daemon's its core over regions that the test keeps
STEP_TESTS  := $(B)/tests/crash/step_client_test $(B)/tests/crash/step_daemon_test
$(STEP_TESTS): $(call obj,tests/crash/step.c)
$(B)/tests/crash/step_client_test: ALL_LDFLAGS += -Wl,-z,now # the linker's work at a first call is no part of an operation
$(B)/tests/crash/step_daemon_test: $(DAEMON_OBJ)
$(B)/tests/crash/step_daemon_test: LIB_LIBS = $(DAEMON_LIBS)

# tests/systemd: a client for the tests of the service
SYSTEMD_TESTS := $(B)/tests/systemd/holder
tests: $(SYSTEMD_TESTS)
$(SYSTEMD_TESTS): $(B)/tests/%: $(B)/obj/tests/%.o $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $< $(BESIDE_LIB)

# tests/model: the whole API at random against a shadow; one program, which is also each of its processes
MODEL       := $(B)/tests/model/model
tests: $(MODEL)
$(MODEL): $(call obj,$(wildcard tests/model/*.c)) $(HARNESS_OBJ) $(SHM_OBJ) $(PROTO_OBJ) $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -rdynamic -pthread -o $@ $(filter %.o,$^) $(BESIDE_LIB) $(LIB_LIBS) $(TEST_LIBS)

# ---- what CI runs ------------------------------------------------------------------------------

.PHONY: demo demo-run
demo: ## the main job on real input: DIR= WORKERS=
	@$(call needed)
	@$(MAKE) --no-print-directory demo-run
demo-run: all $(EXAMPLES)
	@ARENA_BUILD=$(B) client/examples/demo.sh

.PHONY: test test-run
test: ## what CI runs: build, unit, end-to-end and crash tests
	@$(call needed)
	@$(MAKE) --no-print-directory test-run
test-run: tests
	$(if $(SANITIZE),@echo "not run with a sanitizer: tests/scripts look at the build as it ships")
	@ARENA_BUILD=$(B) tests/run $(MODEL) tests/systemd/run.sh $(E2E_TESTS) $(EXPLORERS) $(UNIT_TESTS) $(REPLAYS) \
	    $(if $(SANITIZE),,$(wildcard tests/scripts/*.sh))

# ---- each of them more, or longer --------------------------------------------------------------

.PHONY: model mutants crash soak storm bench-rebuild
model: ## the model of the whole API for a minute: SEED= MODEL=
model: all $(MODEL)
	@ARENA_BUILD=$(B) $(MODEL)

mutants: ## defects put back, which the tests must find: MUTANTS= patches (tests/mutants/*.patch)
	@tests/mutants/check
	@tests/mutants/run $(MUTANTS)

crash: ## kills at every instruction of client and daemon, not a sample
	@$(MAKE) --no-print-directory all $(STEP_TESTS)
	@for test in $(STEP_TESTS); do ARENA_BUILD=$(B) CRASH=all $$test || exit 1; done

$(B)/tests/crash/soak: $(B)/obj/tests/crash/soak.o $(HARNESS_OBJ) $(SHM_OBJ) $(PROTO_OBJ) $(B)/libarena.so
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $(filter %.o,$^) $(BESIDE_LIB) $(LIB_LIBS) $(TEST_LIBS)
soak: ## the model, and lists committed under kills beside it, for as long as asked: MINUTES= SEED=
soak: all $(B)/tests/crash/soak $(MODEL)
	@export ARENA_BUILD=$(B) MINUTES=$${MINUTES:-1}; $(B)/tests/crash/soak & $(MODEL); rc=$$?; wait $$! && exit $$rc

storm: ## hostile users, restarts, and honest clients beside them, for as long as asked: MINUTES= SEED=
storm: all $(B)/tests/crash/storm_test
	@ARENA_BUILD=$(B) MINUTES=$${MINUTES:-1} $(B)/tests/crash/storm_test

$(B)/tests/crash/rebuild: $(B)/obj/tests/crash/rebuild.o $(SHM_OBJ) $(PROTO_OBJ) $(DAEMON_OBJ)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $^ $(DAEMON_LIBS)
PROGRAMS    += $(B)/tests/crash/soak $(B)/tests/crash/rebuild
bench-rebuild: ## how long a daemon that starts takes to rebuild what it knows: SPANS= (a million)
bench-rebuild: $(B)/tests/crash/rebuild
	@$(B)/tests/crash/rebuild $(SPANS)

# ---- every check -------------------------------------------------------------------------------
# `make test-all` is `make test` and all of these; each can be run alone. A test that takes longer than a run of CI may is
# added to LATER: a program below tests/ without its build folder, or a script. Other .mk files add theirs to ALL_TARGETS.

LATER       ?=
ALL_TARGETS := test-later test-address test-thread test-clang lint test-valgrind mutants
# where threads of one process meet; e2e/stack_test copies stacks, kill and restart tests kill what is watched, and of
# e2e/fork_test's children by _Fork and clone ThreadSanitizer is not told: it takes their locks for their parent's
THREAD_TESTS = $(UNIT_TESTS) $(addprefix $(B)/tests/e2e/,ring_test object_test attach_test thread_test escape_test)

.PHONY: test-all test-later test-address test-thread test-thread-run test-clang test-valgrind
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
