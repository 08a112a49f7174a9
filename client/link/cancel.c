#include "client/link/cancel.h"

__thread struct cancel_hold cancel_hold;
