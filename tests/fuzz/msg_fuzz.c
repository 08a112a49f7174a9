/* Bytes as a packet: decoded or refused, and what is decoded encodes to a packet that decodes to
 * the same. */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "proto/msg.h"
#include "shm/assert.h"

static struct msg first, second;
static struct msg_space first_space, second_space;
static uint8_t again[MSG_MAX], last[MSG_MAX];
static unsigned char seen[FUZZ_TYPES];

const char *fuzz_lacks(void) { return fuzz_unseen(seen); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char why[MSG_TEXT_MAX + 1] = "";
    memset(&first_space, 0x5a, sizeof first_space);
    uint8_t *packet = malloc(size ? size : 1); /* of its own size: a read behind it is noticed */
    ASSERT(packet);
    memcpy(packet, data, size);
    int rc = msg_decode(&first, &first_space, packet, size, why);
    if (rc < 0) {
        ASSERT(why[0] && strlen(why) <= MSG_TEXT_MAX);
    } else {
        seen[first.type] = 1;
        int bytes = msg_encode(&first, again, sizeof again);
        ASSERT(bytes > 0);
        ASSERT(msg_decode(&second, &second_space, again, (size_t)bytes, why) == 0);
        ASSERT(msg_encode(&second, last, sizeof last) == bytes);
        ASSERT(memcmp(again, last, (size_t)bytes) == 0);
    }
    for (unsigned depth = 0; depth < 4; depth++)
        msg_precheck(packet, size, depth);
    free(packet);
    return 0;
}
