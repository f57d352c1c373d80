#!/bin/sh
# Makes the texts of this project from Debian packages taken by name (Debian 12 when the shipped files were made).
#   scripts/make_texts.sh OUT_DIR [DEB_DIR]
# writes OUT_DIR/{train.txt, calibration.txt, calibration.txt.zst, heldout.txt} and prints the check that no 50-byte run
# inside a line of heldout.txt occurs in the other two. DEB_DIR: packages already downloaded (else apt-get download).
# Needs apt-get, dpkg-deb, python3 (standard library only), zstd. Sources and licences: texts/README.md.
set -eu
OUT=$(mkdir -p "$1" && cd "$1" && pwd)
DEBS=${2:-$OUT/debs}
PKGS="dict-devil golang-1.19-src jargon-text libpython3.11-minimal libpython3.11-stdlib libsqlite3-dev libstb-dev node-lodash
nodejs-doc nlohmann-json3-dev postgresql-15 postgresql-client-15 postgresql-doc-15 python3-django python3.11-doc rust-doc
rust-src sqlite3-doc sword-text-sparv sword-text-web"
mkdir -p "$DEBS"
for p in $PKGS; do
    ls "$DEBS/$p"_*.deb >/dev/null 2>&1 || (cd "$DEBS" && apt-get download "$p")
    [ -d "$OUT/x/$p" ] || { mkdir -p "$OUT/x/$p" && dpkg-deb -x "$DEBS/$p"_*.deb "$OUT/x/$p"; }
    echo "$p $(dpkg-deb -f "$DEBS/$p"_*.deb Version)"
done

python3 - "$OUT" <<'PY'
import glob, gzip, html, html.parser, os, random, re, struct, sys, zlib

OUT = sys.argv[1]
TRAIN, CALIB, HELDOUT = 9_000_000, 1_000_000, 165_000  # bytes aimed at
DROP_LINE = re.compile(r"py(pi)|crates\.(io)|npm(js)|registry|python(hosted)|ruby(gems)|mirror|proxy\.(golang)|debian\.(org)|docs\.(rs)|/(work)|f(uc)k|sh(i)t|n(i)gg|\bc(un)t", re.I)
DROP_FILE = re.compile(r"GNU (General|Lesser|Free|Library)|Creative Commons|\bCC[- ]BY|\bGPL\b")

class Text(html.parser.HTMLParser):
    """Plain text of a page: paragraphs on one line, code kept as it is."""
    SKIP, BLOCK = {"script", "style", "nav", "head", "svg"}, {"p", "div", "li", "h1", "h2", "h3", "h4", "tr", "table", "dt", "dd", "ul", "ol", "blockquote"}
    def __init__(self, page):
        super().__init__(); self.out, self.skip, self.pre = [], 0, 0
        self.feed(page)
    def handle_starttag(self, tag, _):
        self.skip += tag in self.SKIP; self.pre += tag == "pre"
        if tag in self.BLOCK or tag == "pre": self.out.append("\n\n" if tag in ("p", "h1", "h2", "h3", "pre") else "\n")
        if tag == "br": self.out.append("\n")
    def handle_endtag(self, tag):
        self.skip -= tag in self.SKIP; self.pre -= tag == "pre"
        if tag in ("p", "pre", "h1", "h2", "h3"): self.out.append("\n\n")
    def handle_data(self, data):
        if self.skip <= 0: self.out.append(data if self.pre > 0 else re.sub(r"\s+", " ", data))

def page(text):
    """The text of a page without the menu on top (SQLite, mdBook) and the licence line at the foot (Rust)."""
    text = re.sub(r"(?s)^.{0,3000}?(Search Changelog|Navy\s+Ayu)", "", "".join(Text(text).out))
    return re.sub(r" *Copyright © 20\d\d The Rus.*|^ *Run *$|^ *Rust 1\.63\.0$", "", text, flags=re.M)

def read(path):
    data = open(path, "rb").read()
    return (gzip.decompress(data) if path.endswith((".gz", ".dz")) else data).decode("utf-8", "replace")

def unwrap(text):
    """Joins wrapped lines of prose; indented lines and fenced code stay as they are."""
    parts = text.replace("\r", "").split("```")
    return "```".join(p if i % 2 else re.sub(r"(?<=[^\s>])\n(?=[^\s`*#<-])", " ", p) for i, p in enumerate(parts))

def sword(path):
    """SWORD zText: blocks deflated one by one; .bzs holds (offset, size, size uncompressed)."""
    out = []
    for part in ("ot", "nt"):
        index, data = (open(f"{path}/{part}.{e}", "rb").read() for e in ("bzs", "bzz"))
        for off, size, _ in struct.iter_unpack("<III", index):
            t = zlib.decompress(data[off:off + size]).decode("utf-8", "replace")
            t = re.sub(r"<note.*?</note>|<title.*?</title>|<w [^>]*/>", "", t, flags=re.S)
            t = re.sub(r"<(div|lb|l|lg|p|chapter)\b[^>]*>|</(p|lg|l)>", "\n", t)
            t = html.unescape(re.sub(r"<[^>]+>", " ", t)).replace("\0", " ")
            t = re.sub(r" *\n\s*", "\n", re.sub(r"[ \t\x0b-\x1f]+", " ", t)).replace("¶", "")
            out.append(re.sub(r"([“‘(¿¡]) ", r"\1", re.sub(r" (?=[,.;:!?’”)])", "", t)))
    return "\n".join(out)

def mo(path, shortest):
    """The longer translated sentences of a compiled message catalogue."""
    d = open(path, "rb").read()
    n, _, table = struct.unpack_from("<III", d, 8)
    out = []
    for i in range(1, n):
        size, off = struct.unpack_from("<II", d, table + 8 * i)
        s = d[off:off + size].split(b"\0")[0]
        if len(s) >= shortest: out.append(s.decode("utf-8", "replace").strip())
    return "\n".join(out)

X = OUT + "/x/"
def files(pattern, skip="$^"):
    return [f for f in sorted(glob.glob(X + pattern, recursive=True)) if os.path.isfile(f) and not re.search(skip, f)]

def each(pattern, f=lambda s: s, skip="$^", most=200_000):  # a long document is judged section by section
    for path in files(pattern, skip):
        t = read(path)
        if (most > 10**8 or not DROP_FILE.search(t)) and "\ufffd" not in t: yield f(t[:most])

def catalogues(langs, where, shortest=60):
    for lang in langs.split():
        for path in files(where.replace("LANG", lang)): yield mo(path, shortest)

GO, RS, PG = "golang-1.19-src/usr/share/go-1.19/src/", "rust-src/usr/src/rustc-*/library/", "postgresql-*15/usr/share/"
PGMO, DJMO = PG + "locale/LANG/**/*.mo", "python3-django/usr/lib/python3/dist-packages/django/**/locale/LANG/**/*.mo"
STD, SKIPPY = "libpython3.11-*/usr/lib/python3.11/", r"lib2to3|idlelib|encodings|pydoc_data|turtle|this\.py|test|_pyio|sre_"
SQLITE, DOC = "sqlite3-doc/usr/share/doc/sqlite3/", "python3.11-doc/usr/share/doc/python3.11/html/_sources/"
devil = lambda t: t[t.find("ABASEMENT"):]
optics = lambda t: unwrap(t[t.find("SIR ISAAC NEWTON'S ADVERTISEMENTS"):])
def jargon(t):
    t = t.replace("\xa0", " ").replace("\r", "")
    t = re.sub(r"(?<=[^\s│┐┘┤])\n   (?=[^\s│├┌└])", " ", t[t.find("Chapter 1. "):])
    return re.sub(r"\n   (?=\S)", "\n", t)
SOURCES = {  # name: (share of the mix in %, documents)
    "prose WEB bible":     (8, [sword(X + "sword-text-web/usr/share/sword/modules/texts/ztext/engWEB2015eb")]),
    "prose Opticks":       (6, each(GO + "testdata/Isaac.Newton-Opticks.txt", optics, most=10**9)),
    "prose Jargon File":   (9, each("jargon-text/usr/share/doc/jargon-text/jargon.txt.gz", jargon, most=10**9)),
    "prose Devil's Dict.": (4, each("dict-devil/usr/share/dictd/devil.dict.dz", devil, most=10**9)),
    "prose Rust books":    (7, each("rust-doc/usr/share/doc/rust-doc/html/*book/**/*.html", page, r"print\.html|edition/|unstable-book|license")),
    "docs Python":         (10, each(DOC + "**/*.rst.txt", unwrap, "license|changelog|whatsnew|distribut|install")),
    "docs SQLite":         (7, each(SQLITE + "**/*.html", page, "releaselog|session|changes|sitemap|keyword|doclist")),
    "docs PostgreSQL":     (7, each("postgresql-doc-15/usr/share/doc/postgresql-doc-15/html/*.html", page, "biblio|bookindex|release-|features")),
    "docs Node.js":        (5, each("nodejs-doc/usr/share/doc/nodejs/api/*.md.gz", unwrap, "all.md")),
    "code Python":         (6, each(STD + "**/*.py", skip=SKIPPY)),
    "code Go":             (6, each(GO + "**/*.go", skip=r"testdata|vendor|unicode/tables|zerrors|zsys|elf\.go|asin|log1p|opGen|rewrite|/cmd/|pprof|syscall|idct")),
    "code Rust":           (4, each(RS + "[cas][oflt][rld]*/**/*.rs", skip="vendor|stdarch|/sys/|unicode_data|backtrace")),
    "code C":              (5, list(each("libstb-dev/usr/include/stb/*.h", skip="glext|rrsprintf", most=10**9)) + list(each("libsqlite3-dev/usr/include/*.h", most=10**9))),
    "code JavaScript":     (2, each("node-lodash/usr/share/nodejs/lodash/*.js", skip="min.js|fp/|core.js|lodash.js")),
    "code C++":            (1, each("nlohmann-json3-dev/usr/include/nlohmann/**/*.hpp", skip="to_chars|thirdparty")),
    "code SQL":            (1, each(PG + "postgresql/15/**/*.sql")),
    "markup HTML":         (2, each(SQLITE + "*.html", skip="changes|sitemap|keyword|doclist")),
    "markup JSON":         (1, each("nodejs-doc/usr/share/doc/nodejs/api/*.json.gz", skip="all.json")),
    "Spanish bible":       (2, [sword(X + "sword-text-sparv/usr/share/sword/modules/texts/ztext/spaRV1909eb")]),
    "European, Latin":     (3, catalogues("de fr it pt_BR sv pl cs tr vi", PGMO)),
    "Cyrillic, Greek, Georgian": (2, catalogues("ru uk el ka", PGMO, 100)),
    "Chinese, Japanese, Korean": (3, catalogues("zh_CN zh_TW ja ko", PGMO)),
    "Arabic, Persian, Hebrew, Indic, Thai": (1, catalogues("ar fa he hi bn ta th", DJMO, 90)),
}

def chunks(doc, rng):
    """Sections of about 2 to 8 kB, cut at an empty line where there is one, else at a line's end."""
    doc = "".join(l for l in doc.splitlines(True) if not DROP_LINE.search(l) and len(l) < 6000)
    doc = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", doc)).strip("\n")
    while doc:
        want = int(2000 * 4 ** rng.random())
        if len(doc) <= want + 500: cut = len(doc)
        else:
            cut = doc.rfind("\n\n", want // 2, want)
            if cut < 0: cut = doc.rfind("\n", want // 2, want)
            if cut < 0: cut = doc.find("\n", want)
            if cut < 0: cut = len(doc)
        part, doc = doc[:cut].strip("\n"), doc[cut:].lstrip("\n")
        if len(part) > 200 and not DROP_FILE.search(part): yield part

size = lambda s: len(s.encode())
def take(pool, want):
    got = []
    while pool and want > 0:
        got.append(pool.pop()); want -= size(got[-1])
    return got

RUN = 50
def runs(text):
    for line in text.split("\n"):
        b = line.encode()
        for i in range(len(b) - RUN + 1): yield b[i:i + RUN]

held, train, calib = [], [], []
for name, (share, docs) in SOURCES.items():
    rng = random.Random(name)
    pool = [c for doc in docs for c in chunks(doc, rng)]
    rng.shuffle(pool)
    h = take(pool, HELDOUT * share // 100)
    t = take(pool, TRAIN * share // 100)
    held += h; train += t
    calib += [(name, c) for c in take(t[:], CALIB * share // 100 * 1.02)]
    print(f"{name:40s} train {sum(map(size, t)):8d}  heldout {sum(map(size, h)):6d}  left over {sum(map(size, pool)):9d}")

# disjoint: a line of the training text that shares a 50-byte run with the held-out text goes out
seen = {r for c in held for r in runs(c)}
def clean(chunk):
    return "\n".join(l for l in chunk.split("\n") if len(l.encode()) < RUN or not any(r in seen for r in runs(l)))
before = sum(map(size, train))
train = [clean(c) for c in train]
calib = [clean(c) for _, c in calib]
print(f"removed from the training text for the held-out text's sake: {before - sum(map(size, train))} bytes of {before}")
for part in (held, train, calib): random.Random(1).shuffle(part)
texts = {"heldout": "\n\n".join(held) + "\n", "calibration": "\n\n".join(calib) + "\n", "train": "<|endoftext|>".join(train) + "\n"}
for name, t in texts.items():
    open(f"{OUT}/{name}.txt", "w", encoding="utf-8", newline="\n").write(t)
    print(f"{name}.txt: {size(t)} bytes")
for name in ("train", "calibration"):
    shared = sum(r in seen for r in runs(texts[name].replace("<|endoftext|>", "\n")))
    print(f"check: {shared} runs of {RUN} bytes inside a line shared by heldout.txt and {name}.txt")
    if shared: sys.exit(1)
PY
zstd -q -f -19 "$OUT/calibration.txt" -o "$OUT/calibration.txt.zst"
ls -l "$OUT"/*.txt "$OUT"/*.zst
