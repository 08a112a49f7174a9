# arena: what is built, tested and installed. `make help` lists the targets. Beside what they build stand
# tests/tests.mk, tests/{fuzz,explore,lint,aarch64,bench}/*.mk and packaging/package.mk.

SHELL       := /bin/bash
.DELETE_ON_ERROR:
.SECONDARY:
.DEFAULT_GOAL := all

# of client/arena.h, where programs read it
VERSION     := $(shell sed -nE 's/^\#define ARENA_VERSION_(MAJOR|MINOR|PATCH) ([0-9]+)$$/\2/p' client/arena.h | paste -sd.)
SOVERSION   := 1
CC          ?= gcc
CXX         ?= g++
PREFIX      ?= /usr
DESTDIR     ?=
LIBDIR      ?= $(PREFIX)/lib/$(shell $(CC) -print-multiarch 2>/dev/null)
SYSCONFDIR  ?= /etc
SANITIZE    ?=
comma       := ,
B           := build$(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))

# ---- flags -------------------------------------------------------------------------------------

WERROR      ?=
WARN        := -Wall -Wextra -Wshadow -Wundef -Wstrict-prototypes -Wmissing-prototypes
ALL_CPPFLAGS := -I. -D_GNU_SOURCE -DPRODUCT_VERSION='"$(VERSION)"' $(CPPFLAGS)
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
ALL_LDFLAGS := $(LDFLAGS)
ifneq ($(SANITIZE),)
ALL_CFLAGS  += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer
ALL_LDFLAGS += -fsanitize=$(SANITIZE)
endif

PKG          = $(shell pkg-config --$(1) $(2) 2>/dev/null)

# Every object depends on this file, which holds the flags of the last build: other flags, and all is built anew. WERROR is
# not among them, as what it makes is the same.
FLAGS       := $(strip $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(EXTRA_CFLAGS) $(ALL_LDFLAGS) $(HARDEN_LD) $(CXX) $(AR))
ifneq ($(FLAGS),$(strip $(file <$(B)/flags)))
.PHONY: $(B)/flags
endif
$(B)/flags:
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(FLAGS))' >$@

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

COMPILE      = $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(WERROR) $(EXTRA_CFLAGS) -MMD -MP
$(B)/obj/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(COMPILE) -fPIE -c -o $@ $<

# initial-exec: the fast path reads its thread's mcache with one load (0.2 ns; global-dynamic: 2.3)
$(B)/pic/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(COMPILE) -fPIC -ftls-model=initial-exec -c -o $@ $<

# nodelete: threads that end call back into it, also after a dlclose
$(B)/libarena.so.$(SOVERSION): $(LIB_PIC) client/libarena.map
	$(CC) $(ALL_LDFLAGS) $(HARDEN_LD) -shared -Wl,-soname,libarena.so.$(SOVERSION) -Wl,--version-script=client/libarena.map \
	    -Wl,-z,nodelete -pthread -o $@ $(LIB_PIC) $(LIB_LIBS)
$(B)/libarena.so: $(B)/libarena.so.$(SOVERSION)
	ln -sf libarena.so.$(SOVERSION) $@
$(B)/libarena.a: $(LIB_PIC)
	rm -f $@ && $(AR) rcs $@ $^
$(B)/arenad: $(call obj,$(DAEMON_MAIN)) $(DAEMON_OBJ) $(SHM_OBJ) $(PROTO_OBJ)
	$(CC) $(ALL_LDFLAGS) $(HARDEN_LD) -pie -pthread -o $@ $^ $(DAEMON_LIBS)
$(B)/arenactl: $(CTL_OBJ) $(B)/libarena.a
	$(CC) $(ALL_LDFLAGS) $(HARDEN_LD) -pie -pthread -o $@ $^ $(CTL_LIBS)

# arenactl escape names functions and lines with libdw, where it is installed
$(B)/obj/client/ctl/escape_names.o: override EXTRA_CFLAGS += $(if $(call PKG,libs,libdw),-DHAVE_LIBDW)

EXAMPLES    := $(patsubst client/examples/%.c,$(B)/examples/%,$(wildcard client/examples/*.c))
$(B)/examples/%: client/examples/%.c $(B)/libarena.so $(B)/flags
	@mkdir -p $(@D)
	$(CC) -std=gnu11 $(WARN) $(WERROR) $(CFLAGS) -D_GNU_SOURCE -Iclient $(ALL_LDFLAGS) -pthread -o $@ $< -L$(B) -larena \
	    -Wl,-rpath,'$$ORIGIN/..'

.PHONY: sizeclasses
sizeclasses: ## write shm/sizeclass_table.h anew, after a change of its generator
	@mkdir -p $(B)/gen
	$(CC) -O1 -o $(B)/gen/mksizeclasses shm/gen/mksizeclasses.c
	$(B)/gen/mksizeclasses >$(B)/gen/sizeclass_table.h && mv $(B)/gen/sizeclass_table.h shm/sizeclass_table.h

# what make would run for all PROGRAMS, were nothing built yet: of each source file the first call that names no other
PROGRAMS    := tests
.PHONY: compile_commands.json
compile_commands.json: ## a compiler call for each source file, for clangd and other tools
	@$(MAKE) --no-print-directory -Bn $(PROGRAMS) | \
	    sed -e ':join' -e '/\\$$/{ N; s/\\\n//; b join' -e '}' | awk -v dir='$(CURDIR)' ' \
	    { files = 0; for (i = 2; i <= NF; i++) if ($$i ~ /^[a-z].*\.c$$/ && !seen[$$i]) { files++; file = $$i } } \
	    / -o / && files == 1 { seen[file] = 1; gsub(/\\/, "&&"); gsub(/"/, "\\\""); gsub(/\t/, " "); \
	      printf "%s{ \"directory\": \"%s\", \"file\": \"%s\", \"command\": \"%s\" }", n++ ? ",\n" : "[\n", dir, file, $$0 } \
	    END { print "\n]" }' >$@

include tests/tests.mk $(wildcard tests/*/*.mk) packaging/package.mk
-include $(shell find $(B) -path $(B)/deb -prune -o -name '*.d' -type f -print 2>/dev/null)

.PHONY: install clean help
install: ## programs, library, header, units, manual: DESTDIR= PREFIX=
install: all gdb $(if $(shell command -v scdoc),man)
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' LIBDIR='$(LIBDIR)' SYSCONFDIR='$(SYSCONFDIR)' VERSION='$(VERSION)' \
	    packaging/install $(B)
clean: ## remove what was built
	rm -rf build build-* compile_commands.json
help: ## this list
	@grep -hE '^[a-z_.0-9-]+: ##' $(filter Makefile %.mk,$(MAKEFILE_LIST)) | sed 's/: ## /\t/' | expand -t 24
