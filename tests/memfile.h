/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Bytes as an input file, without touching a disk. Include first (memfd_create). */
#ifndef LQ_TEST_MEMFILE_H
#define LQ_TEST_MEMFILE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sys/mman.h>
#include <unistd.h>

#include "core/os.h"

/* fd -1 when it failed. The caller closes it with lq_file_close, or a function takes it over. */
static inline lq_file lq_memfile(const char *name, const void *p, size_t n) {
    lq_file f = {.fd = memfd_create(name, MFD_CLOEXEC), .size = n, .path = lq_strdup(name)};
    if (f.fd >= 0 && n && write(f.fd, p, n) != (ssize_t)n) lq_file_close(&f);
    return f;
}
#endif
