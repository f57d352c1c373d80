/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
/* Files, folders, clock and hash: the only place that talks to the operating system. POSIX. */
#ifndef LQ_OS_H
#define LQ_OS_H
#include "core/mem.h"

/* An input file: regular, size fixed at open, read by pread only. A symbolic link is refused unless it has the shape
 * of a hub cache entry (../../blobs/<hex>). */
typedef struct lq_file { int fd; uint64_t size; char *path; } lq_file;
lq_status lq_file_open(lq_ctx *ctx, const char *path, lq_file *out);
/* Exactly n bytes at off, or an error that names the file and the range. */
lq_status lq_file_read(lq_ctx *ctx, const lq_file *f, uint64_t off, void *out, size_t n);
void lq_file_close(lq_file *f);
/* A whole file of at most max bytes; out gets a NUL behind the data. */
lq_status lq_file_slurp(lq_ctx *ctx, const char *path, size_t max, lq_buf *out);

bool lq_path_exists(const char *path);
bool lq_path_is_dir(const char *path);
bool lq_path_same(const char *a, const char *b); /* both exist and are the same inode */
/* A bare file name: non-empty, no '/', no control characters, not "." or "..". */
bool lq_name_is_plain(const char *name);
char *lq_path_join(const char *dir, const char *name); /* caller frees; NULL: out of memory */
const char *lq_path_base(const char *path);            /* borrowed */
lq_status lq_mkdir(lq_ctx *ctx, const char *path);     /* fine when it exists */
/* Sorted regular file names of a folder (links of the cache shape included); caller frees with lq_names_free. */
lq_status lq_dir_list(lq_ctx *ctx, const char *path, char ***names, size_t *n);
void lq_names_free(char ***names, size_t n);
lq_status lq_rename(lq_ctx *ctx, const char *from, const char *to); /* fsyncs the folder that holds `to` */
lq_status lq_dir_sync(lq_ctx *ctx, const char *path);
lq_status lq_remove_tree(lq_ctx *ctx, const char *path); /* a folder of plain files and folders, or a file; fine when absent */
uint64_t lq_disk_free(const char *path);             /* bytes; UINT64_MAX when unknown */

/* An output file: created anew (O_EXCL) unless append; every byte is hashed on the way when asked for. */
typedef struct lq_out lq_out;
lq_status lq_out_create(lq_ctx *ctx, const char *path, lq_out **out);
lq_status lq_out_append(lq_ctx *ctx, const char *path, uint64_t size, lq_out **out); /* cut to size, then append */
lq_status lq_out_write(lq_ctx *ctx, lq_out *o, const void *p, size_t n);
/* n bytes at off; the position of lq_out_write stays. Ranges never written read as zero. */
lq_status lq_out_write_at(lq_ctx *ctx, lq_out *o, uint64_t off, const void *p, size_t n);
uint64_t lq_out_pos(const lq_out *o);
lq_status lq_out_sync(lq_ctx *ctx, lq_out *o); /* fsync */
/* fsync and close; *o = NULL always. */
lq_status lq_out_close(lq_ctx *ctx, lq_out **o);
void lq_out_abandon(lq_out **o); /* close without promise */
/* Whole small file: create, write, fsync, close. */
lq_status lq_write_file(lq_ctx *ctx, const char *path, const void *p, size_t n);
lq_status lq_copy_file(lq_ctx *ctx, const char *from, const char *to);

/* A scratch file without a name: gone when closed or when the process ends. dir NULL: TMPDIR or /tmp. */
lq_status lq_scratch_open(lq_ctx *ctx, const char *dir, int *fd);
lq_status lq_scratch_write(lq_ctx *ctx, int fd, uint64_t off, const void *p, size_t n); /* disk full: LQ_ERR_RESOURCE */
lq_status lq_scratch_read(lq_ctx *ctx, int fd, uint64_t off, void *p, size_t n);
void lq_scratch_close(int *fd); /* -1 is fine */

double lq_now(void);            /* seconds, monotonic */
uint64_t lq_peak_rss(void);     /* bytes */
bool lq_is_tty(int fd);

/* SHA-256 (nettle) as 64 lower-case hex digits and a NUL. */
typedef struct lq_sha lq_sha;
lq_sha *lq_sha_new(void);
void lq_sha_add(lq_sha *s, const void *p, size_t n);
void lq_sha_end(lq_sha **s, char hex[65]); /* frees */
lq_status lq_sha_file(lq_ctx *ctx, const char *path, char hex[65]);
#endif
