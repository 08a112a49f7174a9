// Boost.Interprocess' managed_shared_memory behind C functions, as a shared library of its own. One
// segment for all processes; they inherit its mapping from the one that made it, so addresses are
// the same in each.
#include <boost/interprocess/managed_shared_memory.hpp>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

namespace ipc = boost::interprocess;

namespace
{
ipc::managed_shared_memory *segment;
std::string name;
pid_t maker;

void remove_segment()
{
    if (getpid() == maker)
        ipc::shared_memory_object::remove(name.c_str());
}
} // namespace

extern "C" {

int boost_setup(std::size_t bytes)
{
    try {
        maker = getpid();
        name = "arena-bench-" + std::to_string(maker);
        ipc::shared_memory_object::remove(name.c_str());
        segment = new ipc::managed_shared_memory(ipc::create_only, name.c_str(), bytes);
        std::atexit(remove_segment);
        return 0;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "managed_shared_memory: %s\n", e.what());
        return ENOMEM;
    }
}

void *boost_segment()
{
    return segment;
}

void *boost_alloc(void *s, std::size_t size)
{
    return static_cast<ipc::managed_shared_memory *>(s)->allocate(size, std::nothrow);
}

void boost_free(void *s, void *p)
{
    static_cast<ipc::managed_shared_memory *>(s)->deallocate(p);
}

std::uint64_t boost_held()
{
    struct stat st;
    std::string path = "/dev/shm/" + name;
    return stat(path.c_str(), &st) == 0 ? static_cast<std::uint64_t>(st.st_blocks) * 512 : 0;
}
}
