/* SPDX-License-Identifier: Apache-2.0
 * Copyright the lquant authors */
#define _GNU_SOURCE
#include "core/os.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

/* A hub cache keeps snapshots/<rev>/<file> -> ../../blobs/<hash>; any other link could point anywhere on the machine. */
static bool is_cache_link(const char *path) {
    static const char head[] = "../../blobs/";
    char to[512];
    ssize_t n = readlink(path, to, sizeof to - 1);
    if (n <= 0) return false;
    to[n] = 0;
    if (strncmp(to, head, sizeof head - 1)) return false;
    const char *hex = to + sizeof head - 1;
    size_t len = strlen(hex);
    if (len != 40 && len != 64) return false;
    for (; *hex; hex++)
        if (!isxdigit((unsigned char)*hex)) return false;
    return true;
}

lq_status lq_file_open(lq_ctx *ctx, const char *path, lq_file *out) {
    *out = (lq_file){.fd = -1};
    int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (is_cache_link(path) ? 0 : O_NOFOLLOW);
    int fd = open(path, flags);
    if (fd < 0 && errno == ELOOP)
        return lq_fail(ctx, LQ_ERR_FORMAT, "%s: is a symbolic link; only hub cache links are followed", path);
    if (fd < 0) return lq_fail(ctx, LQ_ERR_FORMAT, "%s: %s", path, strerror(errno));
    struct stat sb;
    if (fstat(fd, &sb) || !S_ISREG(sb.st_mode)) {
        close(fd);
        return lq_fail(ctx, LQ_ERR_FORMAT, "%s: not a regular file", path);
    }
    char *copy = lq_strdup(path);
    if (!copy) {
        close(fd);
        return lq_oom(ctx, strlen(path));
    }
    *out = (lq_file){.fd = fd, .size = (uint64_t)sb.st_size, .path = copy};
    return LQ_OK;
}

lq_status lq_file_read(lq_ctx *ctx, const lq_file *f, uint64_t off, void *out, size_t n) {
    uint64_t end;
    if (!lq_add_ok(off, n, &end) || end > f->size)
        return lq_fail(ctx, LQ_ERR_FORMAT, "%s: wanted %zu bytes at %llu, file has %llu", f->path, n,
                       (unsigned long long)off, (unsigned long long)f->size);
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(f->fd, (char *)out + done, n - done, (off_t)(off + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0)
            return lq_fail(ctx, LQ_ERR_FORMAT, "%s: %s at byte %llu of %llu", f->path,
                           got ? strerror(errno) : "the file ended (shrunk while reading?)",
                           (unsigned long long)(off + done), (unsigned long long)f->size);
        done += (size_t)got;
    }
    return LQ_OK;
}

void lq_file_close(lq_file *f) {
    if (f->path && f->fd >= 0) close(f->fd);
    lq_free(f->path);
    *f = (lq_file){.fd = -1};
}

lq_status lq_file_slurp(lq_ctx *ctx, const char *path, size_t max, lq_buf *out) {
    lq_file f;
    *out = (lq_buf){0};
    LQ_TRY(lq_file_open(ctx, path, &f));
    lq_status st = LQ_OK;
    if (f.size > max)
        st = lq_fail(ctx, LQ_ERR_FORMAT, "%s: %llu bytes, at most %zu are accepted", path, (unsigned long long)f.size, max);
    else if (!(out->v = lq_alloc(f.size + 1)))
        st = lq_oom(ctx, f.size);
    else {
        st = lq_file_read(ctx, &f, 0, out->v, f.size);
        out->n = f.size;
        out->cap = f.size + 1;
    }
    if (st) lq_buf_free(out);
    lq_file_close(&f);
    return st;
}

bool lq_path_exists(const char *path) {
    struct stat sb;
    return !lstat(path, &sb);
}
bool lq_path_is_dir(const char *path) {
    struct stat sb;
    return !stat(path, &sb) && S_ISDIR(sb.st_mode);
}
bool lq_path_same(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool lq_name_is_plain(const char *name) {
    if (!*name || !strcmp(name, ".") || !strcmp(name, "..") || strlen(name) > 255) return false;
    for (const char *p = name; *p; p++)
        if (*p == '/' || *p == '\\' || (unsigned char)*p < 32 || *p == 127) return false;
    return true;
}

char *lq_path_join(const char *dir, const char *name) {
    size_t n = strlen(dir);
    return lq_strf("%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
}

const char *lq_path_base(const char *path) {
    const char *p = strrchr(path, '/');
    return p && p[1] ? p + 1 : path;
}

static lq_status out_error(lq_ctx *ctx, const char *what, const char *path) {
    int e = errno;
    return lq_fail(ctx, LQ_ERR_IO, "%s: %s: %s", path, what, strerror(e));
}

lq_status lq_mkdir(lq_ctx *ctx, const char *path) {
    if (mkdir(path, 0777) && !(errno == EEXIST && lq_path_is_dir(path))) return out_error(ctx, "cannot make the folder", path);
    return LQ_OK;
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

lq_status lq_dir_list(lq_ctx *ctx, const char *path, char ***names, size_t *n) {
    *names = NULL;
    *n = 0;
    DIR *d = opendir(path);
    if (!d) return lq_fail(ctx, LQ_ERR_FORMAT, "%s: %s", path, strerror(errno));
    lq_status st = LQ_OK;
    size_t cap = 0;
    for (struct dirent *e; (e = readdir(d));) {
        char *full = lq_path_join(path, e->d_name);
        struct stat sb;
        if (!full) { st = lq_oom(ctx, 256); break; }
        bool keep = !lstat(full, &sb) && (S_ISREG(sb.st_mode) || (S_ISLNK(sb.st_mode) && is_cache_link(full)));
        lq_free(full);
        if (!keep) continue;
        if (*n == cap) {
            char **more = lq_realloc(*names, cap * sizeof **names, (cap * 2 + 16) * sizeof **names);
            if (!more) { st = lq_oom(ctx, cap); break; }
            *names = more;
            cap = cap * 2 + 16;
        }
        if (!((*names)[*n] = lq_strdup(e->d_name))) { st = lq_oom(ctx, 256); break; }
        ++*n;
    }
    closedir(d);
    if (st) lq_names_free(names, *n);
    else if (*n) qsort(*names, *n, sizeof **names, by_name);
    return st;
}

void lq_names_free(char ***names, size_t n) {
    for (size_t i = 0; *names && i < n; i++) lq_free((*names)[i]);
    lq_free(*names);
    *names = NULL;
}

lq_status lq_dir_sync(lq_ctx *ctx, const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return out_error(ctx, "cannot open the folder", path);
    int bad = fsync(fd) && errno != EINVAL;
    close(fd);
    return bad ? out_error(ctx, "fsync", path) : LQ_OK;
}

static lq_status sync_parent(lq_ctx *ctx, const char *path) {
    char *copy = lq_strdup(path);
    if (!copy) return lq_oom(ctx, strlen(path));
    size_t n = strlen(copy);
    while (n > 1 && copy[n - 1] == '/') copy[--n] = 0;
    char *slash = strrchr(copy, '/');
    if (slash == copy) slash[1] = 0;
    else if (slash) *slash = 0;
    lq_status st = lq_dir_sync(ctx, slash ? copy : ".");
    lq_free(copy);
    return st;
}

lq_status lq_rename(lq_ctx *ctx, const char *from, const char *to) {
    if (rename(from, to)) return lq_fail(ctx, LQ_ERR_IO, "cannot rename %s to %s: %s", from, to, strerror(errno));
    return sync_parent(ctx, to);
}

static lq_status remove_deep(lq_ctx *ctx, const char *path, int depth) {
    struct stat sb;
    if (lstat(path, &sb)) return errno == ENOENT ? LQ_OK : out_error(ctx, "cannot remove", path);
    if (!S_ISDIR(sb.st_mode)) return unlink(path) ? out_error(ctx, "cannot remove", path) : LQ_OK;
    if (depth > 8) return lq_fail(ctx, LQ_ERR_IO, "%s: nested too deeply to remove", path);
    DIR *d = opendir(path);
    if (!d) return out_error(ctx, "cannot remove", path);
    lq_status st = LQ_OK;
    for (struct dirent *e; !st && (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        char *full = lq_path_join(path, e->d_name);
        st = full ? remove_deep(ctx, full, depth + 1) : lq_oom(ctx, 256);
        lq_free(full);
    }
    closedir(d);
    if (!st && rmdir(path)) st = out_error(ctx, "cannot remove", path);
    return st;
}
lq_status lq_remove_tree(lq_ctx *ctx, const char *path) { return remove_deep(ctx, path, 0); }

uint64_t lq_disk_free(const char *path) {
    struct statvfs v;
    return statvfs(path, &v) ? UINT64_MAX : (uint64_t)v.f_bavail * v.f_frsize;
}

struct lq_out { int fd; uint64_t pos; size_t fill; char *path; char buf[1 << 16]; };

static lq_status out_open(lq_ctx *ctx, const char *path, int flags, uint64_t size, lq_out **out) {
    lq_out *o = LQ_NEW(lq_out);
    *out = NULL;
    if (!o || !(o->path = lq_strdup(path))) {
        lq_free(o);
        return lq_oom(ctx, sizeof *o);
    }
    o->fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | flags, 0666);
    if (o->fd < 0 || ((flags & O_CREAT) == 0 && (ftruncate(o->fd, (off_t)size) || lseek(o->fd, (off_t)size, SEEK_SET) < 0))) {
        lq_status st = out_error(ctx, "cannot create", path);
        if (o->fd >= 0) close(o->fd);
        lq_free(o->path);
        lq_free(o);
        return st;
    }
    o->pos = size;
    *out = o;
    return LQ_OK;
}
lq_status lq_out_create(lq_ctx *ctx, const char *path, lq_out **out) { return out_open(ctx, path, O_CREAT | O_EXCL, 0, out); }
lq_status lq_out_append(lq_ctx *ctx, const char *path, uint64_t size, lq_out **out) { return out_open(ctx, path, 0, size, out); }

static lq_status out_flush(lq_ctx *ctx, lq_out *o, const char *p, size_t n) {
    while (n) {
        ssize_t put = write(o->fd, p, n);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return out_error(ctx, "cannot write", o->path);
        p += put;
        n -= (size_t)put;
    }
    return LQ_OK;
}

lq_status lq_out_write(lq_ctx *ctx, lq_out *o, const void *p, size_t n) {
    o->pos += n;
    if (o->fill + n > sizeof o->buf) {
        LQ_TRY(out_flush(ctx, o, o->buf, o->fill));
        o->fill = 0;
    }
    if (n > sizeof o->buf) return out_flush(ctx, o, p, n);
    if (n) memcpy(o->buf + o->fill, p, n);
    o->fill += n;
    return LQ_OK;
}
lq_status lq_out_write_at(lq_ctx *ctx, lq_out *o, uint64_t off, const void *p, size_t n) {
    LQ_TRY(out_flush(ctx, o, o->buf, o->fill));
    o->fill = 0;
    for (size_t done = 0; done < n;) {
        ssize_t put = pwrite(o->fd, (const char *)p + done, n - done, (off_t)(off + done));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return out_error(ctx, "cannot write", o->path);
        done += (size_t)put;
    }
    return LQ_OK;
}
uint64_t lq_out_pos(const lq_out *o) { return o->pos; }

lq_status lq_out_sync(lq_ctx *ctx, lq_out *o) {
    LQ_TRY(out_flush(ctx, o, o->buf, o->fill));
    o->fill = 0;
    return fsync(o->fd) && errno != EINVAL ? out_error(ctx, "fsync", o->path) : LQ_OK;
}

void lq_out_abandon(lq_out **o) {
    if (!*o) return;
    close((*o)->fd);
    lq_free((*o)->path);
    lq_free(*o);
    *o = NULL;
}

lq_status lq_out_close(lq_ctx *ctx, lq_out **o) {
    lq_status st = lq_out_sync(ctx, *o);
    lq_out_abandon(o);
    return st;
}

lq_status lq_write_file(lq_ctx *ctx, const char *path, const void *p, size_t n) {
    lq_out *o = NULL;
    LQ_TRY(lq_out_create(ctx, path, &o));
    lq_status st = lq_out_write(ctx, o, p, n);
    if (!st) return lq_out_close(ctx, &o);
    lq_out_abandon(&o);
    return st;
}

lq_status lq_copy_file(lq_ctx *ctx, const char *from, const char *to) {
    enum { STEP = 1 << 20 };
    lq_file f;
    lq_out *o = NULL;
    LQ_TRY(lq_file_open(ctx, from, &f));
    lq_status st = LQ_OK;
    char *buf = lq_alloc(STEP);
    if (!buf) { st = lq_oom(ctx, STEP); goto done; }
    LQ_GO(lq_out_create(ctx, to, &o));
    for (uint64_t off = 0; off < f.size; off += STEP) {
        size_t n = f.size - off < STEP ? (size_t)(f.size - off) : STEP;
        LQ_GO(lq_file_read(ctx, &f, off, buf, n));
        LQ_GO(lq_out_write(ctx, o, buf, n));
    }
    st = lq_out_close(ctx, &o);
done:
    lq_out_abandon(&o);
    lq_free(buf);
    lq_file_close(&f);
    return st;
}

double lq_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

uint64_t lq_peak_rss(void) {
    struct rusage r;
    return getrusage(RUSAGE_SELF, &r) ? 0 : (uint64_t)r.ru_maxrss * 1024;
}
bool lq_is_tty(int fd) { return isatty(fd); }

struct lq_sha { struct sha256_ctx c; };
lq_sha *lq_sha_new(void) {
    lq_sha *s = LQ_NEW(lq_sha);
    if (s) sha256_init(&s->c);
    return s;
}
void lq_sha_add(lq_sha *s, const void *p, size_t n) { sha256_update(&s->c, n, p); }
void lq_sha_end(lq_sha **s, char hex[65]) {
    uint8_t d[SHA256_DIGEST_SIZE];
    sha256_digest(&(*s)->c, sizeof d, d);
    for (size_t i = 0; i < sizeof d; i++) snprintf(hex + 2 * i, 3, "%02x", d[i]);
    lq_free(*s);
    *s = NULL;
}

lq_status lq_sha_file(lq_ctx *ctx, const char *path, char hex[65]) {
    enum { STEP = 1 << 20 };
    lq_file f;
    LQ_TRY(lq_file_open(ctx, path, &f));
    lq_status st = LQ_OK;
    lq_sha *s = lq_sha_new();
    char *buf = lq_alloc(STEP);
    if (!s || !buf) { st = lq_oom(ctx, STEP); goto done; }
    for (uint64_t off = 0; off < f.size; off += STEP) {
        size_t n = f.size - off < STEP ? (size_t)(f.size - off) : STEP;
        LQ_GO(lq_file_read(ctx, &f, off, buf, n));
        lq_sha_add(s, buf, n);
    }
    lq_sha_end(&s, hex);
done:
    lq_free(s);
    lq_free(buf);
    lq_file_close(&f);
    return st;
}

lq_status lq_scratch_open(lq_ctx *ctx, const char *dir, int *fd) {
    if (!dir) dir = getenv("TMPDIR");
    if (!dir || !*dir) dir = "/tmp";
    char *path = lq_path_join(dir, "lquant-XXXXXX");
    if (!path) return lq_oom(ctx, strlen(dir));
    *fd = mkostemp(path, O_CLOEXEC);
    lq_status st = *fd < 0 ? lq_fail(ctx, LQ_ERR_RESOURCE, "temporary file in %s: %s", dir, strerror(errno)) : LQ_OK;
    if (!st) unlink(path);
    lq_free(path);
    return st;
}

lq_status lq_scratch_write(lq_ctx *ctx, int fd, uint64_t off, const void *p, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t k = pwrite(fd, (const char *)p + done, n - done, (off_t)(off + done));
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return lq_fail(ctx, LQ_ERR_RESOURCE, "temporary file: %s", k < 0 ? strerror(errno) : "nothing was written");
        done += (size_t)k;
    }
    return LQ_OK;
}

lq_status lq_scratch_read(lq_ctx *ctx, int fd, uint64_t off, void *p, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t k = pread(fd, (char *)p + done, n - done, (off_t)(off + done));
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return lq_fail(ctx, LQ_ERR_RESOURCE, "temporary file: %s", k < 0 ? strerror(errno) : "it ends too early");
        done += (size_t)k;
    }
    return LQ_OK;
}

void lq_scratch_close(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}
