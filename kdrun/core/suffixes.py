"""Which files are images, by their names, or by their first bytes where a name has no ending.

The list is fixed and the same whatever Pillow is installed: it decides what a folder's hash, and so a run key, is made
of. It has what Pillow opens by itself (not what it hands to Ghostscript, Windows or other programs) and what its
plug-ins for HEIF and JPEG XL open. What an installed Pillow lacks is an unreadable image, never one that is left out.
"""

import os

EXTENSIONS = frozenset(
    {
        "", ".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc",
        ".fli", ".ftc", ".ftu", ".gbr", ".gif", ".heic", ".heics", ".heif", ".heifs", ".hif", ".icb", ".icns", ".ico",
        ".iim", ".im", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".jxl", ".mpo",
        ".msp", ".pbm", ".pcd", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb",
        ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst", ".webp", ".xbm", ".xpm",
    }
)  # fmt: skip
"""Of image files, in lower case; "": files without an ending that begin as an image does."""
BEGINNINGS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  \r\n",
    b"\xff\x4f\xff\x51", b"8BPS", b"qoif", b"\0\0\0\x0cJXL \r\n", b"\xff\x0a",
)  # fmt: skip
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
NETPBM = frozenset(b"%c%d" % (b"P", k) for k in range(1, 7))


def suffix_of(name: str) -> str:
    """The ending of a file's name in lower case; "": it has none."""
    return os.path.splitext(name)[1].lower().rstrip(".")


def is_image(path: str | os.PathLike[str], suffixes: frozenset[str] = EXTENSIONS) -> bool:
    """Whether a file counts as an image. Of one without an ending the first bytes tell, which are read for it."""
    suffix = suffix_of(os.fspath(path))
    return suffix in suffixes and (suffix != "" or begins_as_image(path))


def begins_as_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as those do whose formats have a sure signature."""
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except OSError:
        return False  # who may not read it does not know
    if head.startswith(BEGINNINGS):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[4:8] == b"ftyp":
        return head[8:12] in BRANDS
    if head[:2] == b"BM":
        return len(head) > 17 and int.from_bytes(head[14:18], "little") in (12, 40, 52, 56, 64, 108, 124)
    return head[:2] in NETPBM and head[2:3].isspace()
