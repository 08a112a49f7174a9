/* Names of places. With libdw: functions, files and lines from the debug information of the
 * program, if it has some, else functions from its symbols. Without: what the process itself could
 * name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/escape.h"

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

#ifdef HAVE_LIBDW
#include <elfutils/libdwfl.h>

static char *no_debuginfo = NULL;
static const Dwfl_Callbacks callbacks = {.find_elf = dwfl_build_id_find_elf,
                                         .find_debuginfo = dwfl_standard_find_debuginfo,
                                         .section_address = dwfl_offline_section_address,
                                         .debuginfo_path = &no_debuginfo};

static void look_up(Dwfl_Module *module, struct place *p)
{
    Dwarf_Addr bias = 0;
    int line = 0;
    if (!dwfl_module_getelf(module, &bias))
        return;
    Dwarf_Addr address = p->offset + bias;
    const char *name = dwfl_module_addrname(module, address);
    if (name) {
        free(p->function);
        p->function = strdup(name);
    }
    Dwfl_Line *at = dwfl_module_getsrc(module, address);
    const char *file = at ? dwfl_lineinfo(at, NULL, &line, NULL, NULL, NULL) : NULL;
    if (file) {
        p->file = strdup(file);
        p->line = line;
    }
}

void escape_names(struct escape_report *r)
{
    for (size_t i = 0; i < r->place_count; i++) {
        bool done = false;
        for (size_t k = 0; k < i && !done; k++)
            done = strcmp(r->places[k]->module, r->places[i]->module) == 0;
        if (done)
            continue;
        Dwfl *dwfl = dwfl_begin(&callbacks);
        Dwfl_Module *module = dwfl ? dwfl_report_offline(dwfl, "", r->places[i]->module, -1) : NULL;
        if (module)
            dwfl_report_end(dwfl, NULL, NULL);
        for (size_t k = i; module && k < r->place_count; k++)
            if (strcmp(r->places[k]->module, r->places[i]->module) == 0)
                look_up(module, r->places[k]);
        if (dwfl)
            dwfl_end(dwfl);
    }
}
#else
void escape_names(struct escape_report *r)
{
    (void)r;
}
#endif

/* In one of several buffers that are used in turn. */
static const char *by_module(const struct place *p)
{
    static char buffers[8][256];
    static unsigned next;
    char *out = buffers[next++ % 8];
    snprintf(out, sizeof buffers[0], "%s+%#llx", clean(base_name(p->module), false),
             (unsigned long long)p->offset);
    return out;
}

const char *place_function(const struct place *p)
{
    return p->function ? p->function : by_module(p);
}

const char *place_text(const struct place *p)
{
    static char buffers[8][256];
    static unsigned next;
    if (!p->file)
        return by_module(p);
    char *out = buffers[next++ % 8];
    snprintf(out, sizeof buffers[0], "%s:%d", base_name(p->file), p->line);
    return out;
}
