/* For LD_PRELOAD: reads and writes of regular files transfer only a part of the bytes, and some are interrupted.
   The system may do so at any time, on network disks and with signals, though it rarely does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>
#include <sys/types.h>

static unsigned state = 1;

static unsigned draw(void) { return (state = state * 1664525u + 1013904223u) >> 8; }

/* Return the number of bytes to transfer; 0: the call is interrupted. */
static size_t part(int descriptor, size_t count) {
    struct stat status;
    if (count < 2 || fstat(descriptor, &status) || !S_ISREG(status.st_mode)) return count;
    if (draw() % 40 == 0) return 0;
    return draw() % 2 ? count : 1 + draw() % count;
}

#define SHORTEN(name, parameters, arguments)                                    \
    ssize_t name parameters {                                                   \
        static ssize_t(*original) parameters;                                   \
        if (!original) *(void **)(&original) = dlsym(RTLD_NEXT, #name);         \
        size_t whole = count;                                                   \
        count = part(descriptor, count);                                        \
        if (whole && !count) { errno = EINTR; return -1; }                      \
        return original arguments;                                              \
    }

SHORTEN(read, (int descriptor, void *data, size_t count), (descriptor, data, count))
SHORTEN(write, (int descriptor, const void *data, size_t count), (descriptor, data, count))
SHORTEN(pread64, (int descriptor, void *data, size_t count, off64_t offset), (descriptor, data, count, offset))
SHORTEN(pwrite64, (int descriptor, const void *data, size_t count, off64_t offset), (descriptor, data, count, offset))
SHORTEN(pread, (int descriptor, void *data, size_t count, off_t offset), (descriptor, data, count, offset))
SHORTEN(pwrite, (int descriptor, const void *data, size_t count, off_t offset), (descriptor, data, count, offset))
