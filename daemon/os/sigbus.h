/* Memory that a client can take away. Regions in files cannot be sealed: who was given a writable descriptor may cut the
 * file off or punch holes in it while this process reads its mapping, and a read beyond the file's end, or a write into a
 * hole when the disk is full, is a SIGBUS. The handler puts a page of zeros in place of the lost one, counts, and
 * lets the instruction go on: zeros are FREE words and no hints, and nothing that clients can write is believed anyway.
 * Afterwards, by the loop, the file is made whole again and mapped in place of those pages (regions_mend()).
 *
 * One handler for every access was taken rather than a sigsetjmp around each pass: it covers stores and the rebuild at a
 * start too, costs nothing on the way, and leaves no pass half done. */
#ifndef DAEMON_SIGBUS_H
#define DAEMON_SIGBUS_H

#include <stdbool.h>
#include <stdint.h>

enum { SIGBUS_RANGES = 4 };

/* From here on a SIGBUS in [at, at + bytes) is mended, in pieces of page_bytes; anywhere else it is what it was. */
int sigbus_add(void *at, uint64_t bytes, uint64_t page_bytes);
void sigbus_remove(void *at); /* the range that begins there: before it is unmapped */
uint64_t sigbus_hits(void);  /* pages that were lost so far */

#endif
