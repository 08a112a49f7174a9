/* Feeds every file of a directory to a fuzz target: what fuzzing has found once stays found. The
 * directory is the program's argument, or tests/fuzz/corpus/NAME for a program called NAME_replay: that one has a seed
 * for each message. */
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int replay(const char *directory, const char *file)
{
    static uint8_t data[1 << 20];
    char path[4096 + 256 + 2];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return -1;
    }
    size_t size = fread(data, 1, sizeof data, f);
    fclose(f);
    fprintf(stderr, "%s\n", path); /* the last one named is the one that failed */
    LLVMFuzzerTestOneInput(data, size);
    return 0;
}

int main(int argc, char **argv)
{
    char directory[4096];
    int files = 0, failed = 0;
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    snprintf(directory, sizeof directory, "tests/fuzz/corpus/%.*s", (int)strcspn(name, "_"), name);
    if (argc > 1)
        snprintf(directory, sizeof directory, "%s", argv[1]);
    DIR *dir = opendir(directory);
    if (!dir) {
        perror(directory);
        return 1;
    }
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.') {
            files++;
            failed |= replay(directory, entry->d_name);
        }
    closedir(dir);
    printf("%d files of %s\n", files, directory);
    if (argc > 1)
        return failed || files == 0;
    const char *lacking = fuzz_lacks();
    if (lacking)
        printf("no file of %s has the message %s\n", directory, lacking);
    return failed || files == 0 || lacking;
}
