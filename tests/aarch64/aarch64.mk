# ---- AArch64 -----------------------------------------------------------------------------------
# Cross-compiled with Debian's own arm64 libraries, which are unpacked into a folder (tests/aarch64/sysroot.sh): no foreign
# architecture is added to the machine. Run by qemu's emulator of user programs, which shows few of the reorderings that
# such a processor may do; where order matters is a label, and tests/scripts/labels.sh looks.

DEPS_AARCH64 := gcc-aarch64-linux-gnu qemu-user-static
ALL_TARGETS  += test-aarch64
AARCH64      := build-aarch64
SYSROOT      := $(abspath $(AARCH64)/sysroot)
SYSROOT_DEPS  = $(filter-out gcc pkg-config scdoc,$(DEPS))
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
	$(CC) $(ALL_LDFLAGS) -pthread -o $@ $< $(BESIDE_LIB) $(LIB_LIBS)
PROGRAMS    += $(B)/tests/aarch64/pair
