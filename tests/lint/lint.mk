# ---- lint --------------------------------------------------------------------------------------

LINT_SRC     = $(SHM_SRC) $(PROTO_SRC) $(CLIENT_SRC) $(CTL_SRC) $(DAEMON_MAIN) $(DAEMON_SRC)
.PHONY: lint
lint: ## cppcheck and clang-tidy
	@cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
	    --suppress=missingIncludeSystem --suppress=nullPointerRedundantCheck -I. \
	    --include=tests/lint/cppcheck.h -D_GNU_SOURCE -DPRODUCT_VERSION='"$(VERSION)"' $(LINT_SRC)
	@printf '%s\n' $(LINT_SRC) | xargs -n 1 -P "$$(nproc)" sh -c 'clang-tidy --quiet --warnings-as-errors="*" "$$0" -- \
	    -I. -D_GNU_SOURCE -DPRODUCT_VERSION=\"$(VERSION)\" -std=gnu11 2>/dev/null || { echo "$$0: clang-tidy"; exit 1; }'
