/* The profiles of `arenactl escape`: read from files, added up by site, and shown in four ways. */
#ifndef CLIENT_CTL_ESCAPE_H
#define CLIENT_CTL_ESCAPE_H

#include "client/ctl/ctl.h"

enum { ESCAPE_DEPTH = 24, ESCAPE_FRAMES = 8, ESCAPE_CLIENTS = 16 };

/* as in client/debug/profile.h */
enum fate { OWNED, FRAME, THREAD, PROCESS, SHARED, PUBLISHED, CROSSED, LOST, FATES };

struct place {
    char *module; /* path */
    uint64_t offset;
    char *function, *file; /* NULL: not known */
    int line;
};

struct crossing {
    unsigned tag;
    uint64_t pid;
    char command[16];
    double objects;
};

struct escape_site {
    double objects, bytes, ended, life_ns; /* life_ns: of all that ended, together */
    double fates[FATES], frames[ESCAPE_FRAMES];
    struct crossing to[ESCAPE_CLIENTS];
    unsigned to_count;
    struct place *places[ESCAPE_DEPTH];
    unsigned depth;
};

struct escape_report {
    struct escape_site *sites; /* most bytes first */
    size_t count;
    size_t capacity;
    struct place **places;
    size_t place_count;
    double seconds, samples;
    unsigned files;
};

/* escape_read.c. Adds a file: 0, or -1 after one line. */
int escape_read(struct escape_report *r, const char *path);
void escape_free(struct escape_report *r);

/* escape_names.c: looks up functions, files and lines, where debug information is there. */
void escape_names(struct escape_report *r);
const char *place_function(const struct place *p); /* a name, or "module+0x12" */
const char *place_text(const struct place *p);     /* "file.c:12", or "module+0x12" */

/* escape_pprof.c: 0, or CTL_OUTPUT after one line. */
int escape_pprof(const struct escape_report *r, const char *path);

#endif
