# ---- what Debian has for it --------------------------------------------------------------------

DEPS        := gcc libc6-dev pkg-config libuv1-dev libmsgpack-dev libcmocka-dev libsystemd-dev libinih-dev uthash-dev \
               libcjson-dev libncurses-dev libdw-dev scdoc
DEPS_ALL     = $(DEPS) g++ clang llvm clang-format clang-tidy cppcheck valgrind libclang-rt-14-dev libboost-dev libjemalloc2 \
               libmimalloc2.0 libtcmalloc-minimal4 gnuplot-nox debhelper lintian build-essential abigail-tools systemd dbus \
               libnss-systemd strace gdb mandoc $(DEPS_AARCH64)
DEPS_DEB    := $(filter-out libcmocka-dev,$(DEPS)) debhelper lintian build-essential
SUDO         = $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# installs what dpkg does not have yet
install_deps = missing=; for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || \
               missing="$$missing $$p"; done; [ -z "$$missing" ] || { echo "installing:$$missing"; \
               $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive \
               apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }
# what build, demo and test use, whoever installed it; only where something is not there is a package looked for
needed       = { command -v $(firstword $(CC)) scdoc && pkg-config --exists libuv msgpack libsystemd inih libcjson ncursesw libdw cmocka && \
               echo '\#include <uthash.h>' | $(CC) -E -x c - ; } >/dev/null 2>&1 || $(MAKE) --no-print-directory deps

.PHONY: deps deps-all
deps: ## install Debian's packages for build, demo and test
	@$(call install_deps,$(DEPS))
deps-all: ## the same for bench, packaging and every check
	@$(call install_deps,$(DEPS_ALL))

# ---- manual, packages, the service ---------------------------------------------------------

ALL_TARGETS += test-systemd test-deb
.PHONY: man deb symbols test-systemd test-deb
MAN_PAGES   := $(patsubst packaging/man/%.scd,$(B)/man/%,$(wildcard packaging/man/*.scd))
man: ## the manual, from packaging/man/*.scd (scdoc)
man: $(MAN_PAGES)
$(B)/man/%: packaging/man/%.scd
	@mkdir -p $(@D)
	scdoc <$< >$@
	@# each other name before the dash is a page that refers to this one
	@sed -n '/^# NAME/,/^# /s/^\(.*[^ ]\) *- .*/\1/p' $< | tr -d ' \\' | tr , '\n' | while read -r name; do \
	    [ "$$name$(suffix $*)" = $* ] || echo ".so man$(patsubst .%,%,$(suffix $*))/$*" >"$(@D)/$$name$(suffix $*)"; done

# what gdb has to know of the layout, then its commands
.PHONY: gdb
gdb: ## gdb's commands for a heap, build/arena-gdb.py
gdb tests: $(B)/arena-gdb.py
$(B)/gdb-layout: packaging/gdb/layout.c $(wildcard shm/*.h) $(call obj,shm/sizeclass.c) $(B)/flags
	$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(WERROR) $(ALL_LDFLAGS) -o $@ $< $(call obj,shm/sizeclass.c)
$(B)/arena-gdb.py: $(B)/gdb-layout packaging/gdb/arena-gdb.py
	@sed '/^# LAYOUT$$/Q' packaging/gdb/arena-gdb.py >$@.new && $(B)/gdb-layout >>$@.new && \
	    sed '1,/^# LAYOUT$$/d' packaging/gdb/arena-gdb.py >>$@.new && mv $@.new $@

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
