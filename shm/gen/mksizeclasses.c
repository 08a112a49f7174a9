/* Writes shm/sizeclass_table.h: `make sizeclasses` runs it; a test checks that the committed table is what it writes.
 *
 * A size class is an object size and the number of pages of its spans. Three things are wanted at once: little waste
 * inside an object (classes close together), little waste at a span's end, and spans of few objects (of a heap of which
 * 5 % lives at random, those give back far more). So sizes are made from spans and not spans from sizes: a candidate is
 * the largest multiple of 16 of which `count` fit into `pages`. Of all chains of candidates from 128 bytes to 32 KiB
 * the one of least cost is taken (shortest path). A class pays for what requests between it and the class below
 * waste, weighted by their number on a logarithmic scale, and a fixed price, as every class needs spans of its own.
 * Powers of two are always in it: objects of such a class are aligned to their size.
 */
#include <stdio.h>

enum { PAGE = 8192, MAX_SIZE = 32768, STEPS = MAX_SIZE / 16, MAX_PAGES = 9 };

static const double CLASS_PRICE = 0.0024; /* 69 classes; half of it gives 86, twice 60 */
static const double RETURN_PRICE = 0.008; /* of one more object in a span: the share that 5 % alive keep from the OS */

struct node {
    int pages, count, from;
    double own, total; /* own: waste at the end and price of the span; total: the cheapest chain that ends here */
};
static struct node node[STEPS + 1];

static void find_candidates(void)
{
    for (int i = 0; i <= STEPS; i++)
        node[i].own = 1e9;
    for (int pages = 1; pages <= MAX_PAGES; pages++) {
        for (int count = 1; count <= pages * PAGE / 16; count++) {
            int size = pages * PAGE / count / 16 * 16;
            if (size > MAX_SIZE)
                continue;
            double tail = 1 - (double)count * size / (pages * PAGE);
            double own = tail + RETURN_PRICE * (count < 12 ? count : 12) + 0.004 * pages;
            if (own < node[size / 16].own) {
                node[size / 16].own = own;
                node[size / 16].pages = pages;
                node[size / 16].count = count;
            }
        }
    }
}

static int is_power_of_two(int x) { return (x & (x - 1)) == 0; }

static double log_ratio(double to, double from) /* ln(to/from), good enough without libm */
{
    double y = (to - from) / (to + from);
    return 2 * (y + y * y * y / 3 + y * y * y * y * y / 5);
}

static void find_chain(int first)
{
    for (int i = first; i <= STEPS; i++)
        node[i].total = i == first ? 0 : 1e9;
    for (int to = first + 1; to <= STEPS; to++) {
        for (int from = to - 1; from >= first && node[to].own < 1e8; from--) {
            double inside = (to - from) / 2.0 / to;
            double weight = log_ratio(to, from) + 1.5 * (to - from) / STEPS;
            double total = node[from].total + weight * (inside + node[to].own) + CLASS_PRICE;
            if (total < node[to].total) {
                node[to].total = total;
                node[to].from = from;
            }
            if (is_power_of_two(from))
                break;
        }
    }
}

static int number = 1, last_size, sizes[256];

static void row(int size, int pages)
{
    int count = pages * PAGE / size;
    double tail = 100.0 * (pages * PAGE - count * size) / (pages * PAGE);
    double inside = 100.0 * (size - last_size - 1) / size;
    printf("    X(%3d, %6d, %3d, %5d) /* %5.2f %%   %5.2f %% */ \\\n", number++, size, pages, count, tail, inside);
    sizes[number - 1] = size;
    last_size = size;
}

static void chain(int at, int first)
{
    if (at == first)
        return;
    chain(node[at].from, first);
    row(at * 16, node[at].pages);
}

int main(void)
{
    printf("/* Written by shm/gen/mksizeclasses.c (`make sizeclasses`): do not edit.\n"
           " *\n"
           " * X(class, object size in bytes, pages of a span, objects of a span), then the waste at the span's end\n"
           " * and the most that an object of the class can waste inside (a request one byte above the class below).\n"
           " * Classes below 16 bytes: 4 and 12 are for noscan objects only; 8 may hold one reference.\n"
           " */\n"
           "#ifndef SHM_SIZECLASS_TABLE_H\n#define SHM_SIZECLASS_TABLE_H\n\n"
           "/* clang-format off */\n"
           "#define SIZE_CLASS_TABLE(X) \\\n");
    row(4, 1);
    row(8, 1);
    row(12, 1);
    for (int size = 16; size <= 128; size += 16)
        row(size, 1);
    find_candidates();
    find_chain(128 / 16);
    chain(STEPS, 128 / 16);
    printf("    /* end */\n/* clang-format on */\n\n");
    printf("#define SIZE_CLASS_COUNT %d /* with class 0, which is none */\n\n", number);
    printf("/* The class of a request, by (bytes + 15) / 16, from 16 bytes on */\n/* clang-format off */\n"
           "#define SIZE_CLASS_LOOKUP \\\n    ");
    for (int i = 0, class = 0; i <= STEPS; i++) {
        while (class + 1 < number && (class == 0 || sizes[class] < i * 16))
            class++;
        printf("%d%s", i ? class : 4, i == STEPS ? "\n" : i % 32 == 31 ? ", \\\n    " : ", ");
    }
    printf("/* clang-format on */\n\n#endif\n");
    return 0;
}
