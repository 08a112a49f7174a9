# ---- bench -------------------------------------------------------------------------------------
# A worker program a peer, of the same sources, linked with the peer's shared library; a peer whose library is missing has
# no worker, and the report says so. BENCH= rows or groups, PEERS=, REPS=, RUN_MS=, MINUTES=, OUT=: see tests/bench/bench.sh

BENCH_PEERS := arena inline glibc jemalloc mimalloc tcmalloc boost ring
BENCH_SRC   := worker speed space service bench
BENCH_DIR   := $(B)/bench
BENCH_CC     = $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(WERROR) -fno-builtin -fno-plt -MMD -MP
bench_lib_jemalloc := -l:libjemalloc.so.2
bench_lib_mimalloc := -l:libmimalloc.so.2.0
bench_lib_tcmalloc := -l:libtcmalloc_minimal.so.4
bench_file_glibc := libc.so
bench_file_jemalloc := libjemalloc.so
bench_file_mimalloc := libmimalloc.so
bench_file_tcmalloc := libtcmalloc_minimal.so
bench_objs   = $(patsubst %,$(BENCH_DIR)/obj-$(1)/%.o,$(BENCH_SRC))

define bench_peer
$(BENCH_DIR)/obj-$(1)/%.o: tests/bench/%.c $(B)/flags
	@mkdir -p $$(@D)
	$$(BENCH_CC) $(2) -c -o $$@ $$<
endef
define bench_private
$(call bench_peer,$(1),-DPEER_PRIVATE -DPEER_LIBRARY='"$(bench_file_$(1))"')
$(BENCH_DIR)/worker-$(1): $(call bench_objs,$(1)) $(BENCH_DIR)/obj-$(1)/peer_private.o
	$$(CC) $$(ALL_LDFLAGS) -pthread -Wl,-z,now -Wl,--no-as-needed -o $$@ $$^ $(bench_lib_$(1)) -lm
endef
$(foreach peer,glibc jemalloc mimalloc tcmalloc,$(eval $(call bench_private,$(peer))))
define bench_arena
$(call bench_peer,$(1),-DPEER_ARENA $(2))
$(BENCH_DIR)/worker-$(1): $(call bench_objs,$(1)) $(BENCH_DIR)/obj-$(1)/peer_arena.o $(SHM_OBJ) $(PROTO_OBJ) $(B)/libarena.so
	$$(CC) $$(ALL_LDFLAGS) -pthread -Wl,-z,now -o $$@ $$(filter %.o,$$^) -L$(B) -larena -Wl,-rpath,'$$$$ORIGIN/..' \
	    $$(LIB_LIBS) -lm
endef
$(eval $(call bench_arena,arena))
$(eval $(call bench_arena,inline,-DPEER_INLINE))
$(eval $(call bench_peer,boost,-DPEER_BOOST))
$(eval $(call bench_peer,ring,-DPEER_RING))
$(BENCH_DIR)/worker-ring: $(call bench_objs,ring) $(BENCH_DIR)/obj-ring/peer_ring.o
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $^ -lm
$(BENCH_DIR)/libbench_boost.so: tests/bench/peer_boost.cc
	@mkdir -p $(@D)
	$(CXX) -O2 -g -std=c++17 -fPIC -shared -o $@ $<
$(BENCH_DIR)/worker-boost: $(call bench_objs,boost) $(BENCH_DIR)/obj-boost/peer_boost.o $(BENCH_DIR)/libbench_boost.so
	$(CC) $(ALL_LDFLAGS) -pthread -Wl,-z,now -o $@ $(filter %.o,$^) -L$(BENCH_DIR) -lbench_boost -Wl,-rpath,'$$ORIGIN' -lm

.PHONY: bench bench-workers
bench: ## side by side with other allocators: BENCH= PEERS= REPS= RUN_MS= MINUTES= OUT=
bench: all bench-workers
	@ARENA_BUILD=$(B) BENCH='$(BENCH)' PEERS='$(PEERS)' REPS='$(REPS)' RUN_MS='$(RUN_MS)' MINUTES='$(MINUTES)' \
	    WAIT_MS='$(WAIT_MS)' NICE='$(NICE)' OUT='$(OUT)' tests/bench/bench.sh
bench-workers: all
	@mkdir -p $(BENCH_DIR)
	@for peer in $(BENCH_PEERS); do $(MAKE) --no-print-directory $(BENCH_DIR)/worker-$$peer >$(BENCH_DIR)/make-$$peer.log 2>&1 \
	    || { rm -f $(BENCH_DIR)/worker-$$peer; [ $$peer != arena ] || { cat $(BENCH_DIR)/make-arena.log; exit 1; }; }; done

PROGRAMS    += $(addprefix $(BENCH_DIR)/worker-,$(BENCH_PEERS))

# ---- one program a question --------------------------------------------------------------------

BENCH_ONES  := $(addprefix $(B)/bench/,stack grow profile collect tiny)
PROGRAMS    += $(BENCH_ONES)
$(BENCH_ONES): $(B)/bench/%: tests/bench/%.c client/arena.h $(B)/libarena.so $(B)/flags
	@mkdir -p $(@D)
	$(CC) $(ALL_CPPFLAGS) -std=gnu11 $(WARN) $(WERROR) -O2 -g $(ALL_LDFLAGS) -pthread -o $@ $< -L$(B) -larena -Wl,-rpath,'$$ORIGIN/..' $(ONE_LIBS)
$(B)/bench/collect $(B)/bench/tiny: ONE_LIBS = $(CTL_LIBS)

GC_MIB      ?= 1024
FILES       ?= $(wildcard /usr/share/iso-codes/json/*.json)
.PHONY: bench-stack bench-grow bench-profile bench-gc bench-tiny
bench-profile: ## what ARENA_PROFILE=on costs at most
bench-profile: all $(B)/bench/profile
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh 64M tests/bench/profile.sh $(B)/bench/profile
bench-stack: ## frames beside heap objects; the hot-split loop beside a segmented stack
bench-stack: all $(B)/bench/stack
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh 64M $(B)/bench/stack
bench-grow: ## buffers beside realloc; batches; transactions beside publishing
bench-grow: all $(B)/bench/grow
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh 4G $(B)/bench/grow
bench-gc: ## seconds that a collection takes for each GiB: GC_MIB=
bench-gc: all $(B)/bench/collect
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh $$(( $(GC_MIB) * 3 / 2 + 128 ))M $(B)/bench/collect $(GC_MIB)
bench-tiny: ## objects under 16 bytes in JSON documents: FILES= (those of Debian's iso-codes)
bench-tiny: all $(B)/bench/tiny
	@ARENA_BUILD=$(B) tests/bench/with_daemon.sh 2G $(B)/bench/tiny $(FILES)
