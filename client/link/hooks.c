#include "client/link/hooks.h"

struct hooks hooks;
