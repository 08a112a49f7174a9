# ---- fuzzers -----------------------------------------------------------------------------------
# tests/fuzz/X_fuzz.c: a target; `make test` replays its kept corpus, `make fuzz` looks for more

REPLAYS     := $(patsubst tests/fuzz/%_fuzz.c,$(B)/tests/fuzz/%_replay,$(wildcard tests/fuzz/*_fuzz.c))
tests: $(REPLAYS)
$(B)/tests/fuzz/%_replay: $(B)/obj/tests/fuzz/%_fuzz.o $(B)/obj/tests/fuzz/replay.o $(PROTO_OBJ)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $^ $(LIB_LIBS)

# core_fuzz.c stands in for the loop, threads and what is seen of processes: all of the daemon but those
FUZZ_CORE   := $(filter-out $(addprefix daemon/,shell/server.c shell/collector.c shell/backing.c shell/strays.c os/sched.c shell/peer.c shell/allow.c),$(DAEMON_SRC)) $(SHM_SRC)
$(B)/tests/fuzz/core_replay: $(call obj,tests/fuzz/core_fuzz.c tests/fuzz/replay.c $(FUZZ_CORE)) $(PROTO_OBJ)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $^ $(DAEMON_LIBS)

FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(patsubst tests/fuzz/%_fuzz.c,%,$(wildcard tests/fuzz/*_fuzz.c))
FUZZ_COVERED  = $(addprefix daemon/,shell/requests.c shell/hello.c shell/waiting.c core/clients.c core/mcentral.c passes/reclaim.c passes/scavenge.c passes/gc.c shell/connection.c) shm/root.c
FUZZ_CC       = clang $(ALL_CPPFLAGS) -std=gnu11 $(WARN) $(WERROR) -g -O1
.PHONY: fuzz
fuzz: ## libFuzzer on FUZZ_TARGETS= (all), FUZZ_SECONDS= each (clang); then how much of the daemon the core's inputs reach (llvm-cov)
	@mkdir -p $(B)/fuzz
	@for target in $(FUZZ_TARGETS); do \
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

# ---- coverage ----------------------------------------------------------------------------------
# COVERED: programs of build-coverage/tests and scripts; all of `make test` but what looks at the build as it ships

COVERED      ?= $(MODEL) $(E2E_TESTS) $(UNIT_TESTS) $(REPLAYS) \
                $(filter-out %/hardening.sh %/symbols.sh %/install.sh,$(wildcard tests/scripts/*.sh))
COVER_FLAGS   = -fprofile-instr-generate=$(abspath build-coverage/profiles)/%c%m.profraw
.PHONY: coverage coverage-run
coverage: ## functions that no test reaches, and lines reached by tier (clang, llvm-cov): COVERED=
	@$(MAKE) --no-print-directory CC=clang CXX=clang++ B=build-coverage HARDEN= HARDEN_LD= FORTIFY= LDFLAGS='$(COVER_FLAGS)' \
	    CFLAGS='-O0 -gline-tables-only $(COVER_FLAGS) -fcoverage-mapping -mllvm -runtime-counter-relocation' coverage-run
coverage-run: all $(EXAMPLES) $(filter $(B)/%,$(COVERED))
	@tests/coverage $(B) $(COVERED)
