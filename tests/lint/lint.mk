# ---- lint --------------------------------------------------------------------------------------

# Drawings and tables stand between clang-format off and on; comments are never reflowed. clang-format 14, as others differ.
FORMAT      ?= $(firstword $(shell command -v clang-format-14 clang-format))
FORMATTED    = $(filter-out shm/sizeclass_table.h,$(shell find shm proto client daemon tests packaging -name '*.[ch]'))
.PHONY: format lint-format
format: ## lay the C files out as .clang-format says: FORMATTED= files
	@$(FORMAT) -i $(FORMATTED)
lint-format: ## which C files are laid out in another way, and by how many lines
	@bad=0; for file in $(FORMATTED); do n=$$($(FORMAT) $$file | diff $$file - | grep -c '^[<>]'); \
	    [ $$n = 0 ] || { printf '%6d %s\n' $$n $$file; bad=$$((bad + 1)); }; done; \
	    echo "$$bad of $(words $(FORMATTED)) files are laid out in another way: make format"; [ $$bad = 0 ]

LINT_SRC     = $(SHM_SRC) $(PROTO_SRC) $(CLIENT_SRC) $(CTL_SRC) $(DAEMON_MAIN) $(DAEMON_SRC)
.PHONY: lint
lint: ## cppcheck and clang-tidy
	@cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
	    --suppress=missingIncludeSystem --suppress=nullPointerRedundantCheck -I. \
	    --include=tests/lint/cppcheck.h -D_GNU_SOURCE -DPRODUCT_VERSION='"$(VERSION)"' $(LINT_SRC)
	@printf '%s\n' $(LINT_SRC) | xargs -n 1 -P "$$(nproc)" sh -c 'clang-tidy --quiet --warnings-as-errors="*" "$$0" -- \
	    -I. -D_GNU_SOURCE -DPRODUCT_VERSION=\"$(VERSION)\" -std=gnu11 2>/dev/null || { echo "$$0: clang-tidy"; exit 1; }'
