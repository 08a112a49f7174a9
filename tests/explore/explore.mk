# ---- explorer ----------------------------------------------------------------------------------
# tests/explore/X_test.c: the product's code with the hooks of the explorer in place of shm/atomic.h, and never with a
# sanitizer (stacks are copied and switched). What the scenarios never call may be missing

EXPLORERS   := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/explore/*_test.c))
EXPLORE_SRC := $(addprefix tests/explore/,explore.c search.c suite.c wire.c world.c) $(SHM_SRC) \
               $(addprefix client/,$(addprefix link/,cancel.c hooks.c reason.c returns.c) $(addprefix alloc/,keep.c lease.c large.c mcache.c trim.c tx_log.c alloc.c) $(addprefix own/,object.c free.c publish.c tx.c)) \
               $(addprefix daemon/,$(addprefix core/,core.c clients.c mcentral.c mheap.c pagealloc.c) $(addprefix passes/,reclaim.c sweep.c scavenge.c))
EXPLORE_OBJ := $(patsubst %.c,$(B)/explore/%.o,$(EXPLORE_SRC))
tests: $(EXPLORERS)
$(B)/explore/tests/explore/explore.o $(B)/explore/tests/explore/search.o: EXPLORE_FLAGS := -DEX_ENGINE -O2
$(B)/explore/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(CC) $(ALL_CPPFLAGS) -DARENA_EXPLORE -DTAG_COUNT=32 -DHAZARD_COUNT=2 -O1 $(EXPLORE_FLAGS) -include tests/explore/hooks.h -std=gnu11 \
	    $(WARN) $(WERROR) -fno-strict-aliasing -ffunction-sections -fno-pie -g -MMD -MP -c -o $@ $<
$(B)/tests/explore/%_test: $(B)/explore/tests/explore/%_test.o $(EXPLORE_OBJ)
	@mkdir -p $(@D)
	$(CC) -no-pie -Wl,--gc-sections -Wl,--unresolved-symbols=ignore-in-object-files -o $@ $^ $(TEST_LIBS)

.PHONY: explore
explore: ## every interleaving of the lock-free protocols, the larger scenarios too
	@$(MAKE) --no-print-directory $(EXPLORERS)
	@for explorer in $(EXPLORERS); do EXPLORE=$${EXPLORE-all} $$explorer || exit 1; done
