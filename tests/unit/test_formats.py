"""Every kind of image file that people have: what counts as one, which way up it is, and which pixels come of it."""

import struct
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from kdrun.config.dataset import Reading
from kdrun.core.contents import Contents
from kdrun.core.hashing import content_hash
from kdrun.core.schema import FileContent
from kdrun.core.suffixes import EXTENSIONS, is_image
from kdrun.data import reading
from kdrun.data.images import decode, list_images, passed_over
from kdrun.data.orientation import _of_file, _surely_as_stored, orientation, turned
from kdrun.data.packed import Pack
from kdrun.data.reading import NEEDED, read_rgb
from kdrun.data.streamed import ImageFiles

RNG = np.random.default_rng(0)
UPRIGHT, STORED, SRGB = Reading(exif="upright"), Reading(), Reading(color="srgb")
FORMATS = {
    "jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "png": "PNG", "apng": "PNG", "bmp": "BMP",
    "dib": "DIB", "gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "webp": "WEBP", "avif": "AVIF", "ppm": "PPM", "pgm": "PPM",
    "pbm": "PPM", "pnm": "PPM", "ico": "ICO", "tga": "TGA", "pcx": "PCX", "sgi": "SGI", "jp2": "JPEG2000", "j2k": "JPEG2000",
    "mpo": "MPO", "im": "IM", "msp": "MSP", "xbm": "XBM", "dds": "DDS", "icns": "ICNS", "qoi": "QOI",
}  # fmt: skip
MODES = {"pgm": "L", "pbm": "1", "msp": "1", "xbm": "1"}


def stripes(width: int = 40, height: int = 24) -> Image.Image:
    """No two ways up are alike: the upper left is red, the upper right is green."""
    pixels = np.full((height, width, 3), 30, np.uint8)
    pixels[: height // 2, : width // 2, 0] = 220
    pixels[: height // 2, width // 2 :, 1] = 220
    return Image.fromarray(pixels)


def oriented(path: Path, number: int, kind: str = "JPEG", **more) -> Path:
    exif = Image.Exif()
    exif[0x0112] = number
    stripes().save(path, format=kind, exif=exif, **more)
    return path


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_counts_by_its_ending(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    try:
        stripes(32, 32).convert(MODES.get(ending, "RGB")).save(path, format=FORMATS[ending])
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow writes no {ending} ({error})")
    assert is_image(path)
    assert list_images(tmp_path, "images") == [path]
    rgb = read_rgb(path)
    assert isinstance(rgb, Image.Image), rgb
    assert rgb.mode == "RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "PPM", "JPEG2000", "QOI"])
def test_a_file_without_an_ending_counts_by_its_content(tmp_path, kind):
    for name in ("photo", "photo."):
        try:
            stripes().save(tmp_path / name, format=kind)
        except KeyError:
            pytest.skip(f"this Pillow writes no {kind}")
        assert is_image(tmp_path / name)
        assert isinstance(read_rgb(tmp_path / name), Image.Image)


@pytest.mark.parametrize(
    "content", [b"", b"P", b"BM", b"Read me\n", b"P7 of the plan", b"#!/bin/sh\n", b"II", b"RIFF1234WAVE"]
)
def test_other_files_without_an_ending_do_not(tmp_path, content):
    (tmp_path / "README").write_bytes(content)
    assert not is_image(tmp_path / "README")


def test_a_raw_photo_is_no_tiff(tmp_path):
    (tmp_path / "a.nef").write_bytes(b"II*\0" + bytes(99))
    assert not is_image(tmp_path / "a.nef")


def test_the_list_has_what_this_pillow_opens_by_itself():
    """The list is fixed; what a later Pillow learns is to be added by hand, what it does not decode stays out."""
    Image.init()
    outside = {
        ".bufr", ".emf", ".eps", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".palm", ".pdf", ".ps", ".wmf"
    }  # fmt: skip
    opened = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN} - outside
    assert opened <= EXTENSIONS
    assert {".heic", ".jxl", ".avif"} <= EXTENSIONS  # whether this Pillow reads them or not


def test_what_is_no_image_is_passed_over_and_named(tmp_path):
    stripes().save(tmp_path / "a.png")
    for name in ("b.txt", "c.txt", "Thumbs.db", "LICENSE", ".DS_Store"):
        (tmp_path / name).write_text("no image")
    passed: list[Path] = []
    assert list_images(tmp_path, "images", passed) == [tmp_path / "a.png"]
    (line,) = passed_over(passed, tmp_path)
    assert line.startswith(f"{tmp_path}: 4 files are no images or in no class folder and were passed over (2 .txt, ")
    assert "1 without an ending" in line
    assert "LICENSE" in line
    assert passed_over([], tmp_path) == []


def test_the_hash_of_a_folder_moves_only_where_images_do(tmp_path):
    mark = FileContent(suffixes=EXTENSIONS)
    stripes().save(tmp_path / "a.png")
    before = FileContent(
        suffixes=frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})
    )

    def of(asked: FileContent) -> str:
        path = str(tmp_path)
        return content_hash(path, "dataset.path", asked)

    assert of(mark) == of(before)
    for name in ("README", "notes.txt", ".DS_Store"):
        (tmp_path / name).write_text("no image")
    assert of(mark) == of(before)
    stripes().save(tmp_path / "photo", format="PNG")
    assert of(mark) != of(before)


# ------------------------------------------------------------------------------------------------------ which way up


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "MPO"])
@pytest.mark.parametrize("number", range(1, 9))
def test_upright_is_what_pillow_makes_of_it(tmp_path, kind, number):
    path = oriented(tmp_path / f"x.{kind.lower()}", number, kind)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    got = read_rgb(path, UPRIGHT)
    assert isinstance(got, Image.Image)
    np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_stored_is_what_torchvision_takes(tmp_path, kind, number):
    path = oriented(tmp_path / "x", number, kind)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(read_rgb(path, STORED)), expected)
    assert turned([path]) == ({} if number == 1 else {path: orientation(Image.open(path))})


def test_gray_of_sixteen_bits_is_turned_too(tmp_path):
    exif, pixels = Image.Exif(), (np.arange(24, dtype=np.uint16) * 2700).reshape(4, 6)
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    expected = np.rint(np.rot90(pixels, -1) / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(read_rgb(tmp_path / "x.png", UPRIGHT))[..., 0], expected)


def test_orientation_in_xmp_counts_where_exif_says_nothing(tmp_path):
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    stripes().save(tmp_path / "x.jpg", xmp=packet)
    stripes().save(tmp_path / "y.webp", xmp=packet)
    assert turned([tmp_path / "x.jpg", tmp_path / "y.webp"]) == {tmp_path / "x.jpg": 6, tmp_path / "y.webp": 6}
    assert read_rgb(tmp_path / "x.jpg", UPRIGHT).size == (24, 40)


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense" + bytes(50)])
def test_a_damaged_block_is_taken_as_stored(tmp_path, block):
    stripes().save(tmp_path / "a.jpg")
    plain = (tmp_path / "a.jpg").read_bytes()
    path = tmp_path / "x.jpg"
    path.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:])
    assert turned([path]) == {}
    np.testing.assert_array_equal(np.asarray(read_rgb(path, UPRIGHT)), np.asarray(read_rgb(path, STORED)))


@pytest.mark.parametrize("value", [0, 9, 77])
def test_a_number_that_means_nothing_is_taken_as_stored(tmp_path, value):
    path = oriented(tmp_path / "x.jpg", value)
    assert turned([path]) == {}
    assert read_rgb(path, UPRIGHT).size == (40, 24)


def test_what_is_ruled_out_by_the_first_bytes_pillow_rules_out_too(tmp_path):
    """Of files of all kinds, with and without EXIF: the short way never differs from the long one."""
    paths, sure = [], 0
    for kind in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "MPO"):
        stripes().save(tmp_path / f"{kind}.0", format=kind)
        paths.append(tmp_path / f"{kind}.0")
        if kind not in ("GIF", "BMP", "PPM"):
            paths += [oriented(tmp_path / f"{kind}.{k}", k, kind) for k in (1, 3, 6)]
    for path in paths:
        with path.open("rb") as file:
            short = _surely_as_stored(file)
        with Image.open(path) as image:
            long = orientation(image)
        assert not (short and long != 1), path
        assert _of_file(path) == long
        sure += short
    assert sure >= 9  # it is of use


def test_a_large_block_before_exif_is_stepped_over(tmp_path):
    oriented(tmp_path / "a.jpg", 6)
    plain = (tmp_path / "a.jpg").read_bytes()
    filler = b"".join(b"\xff\xe2" + struct.pack(">H", 60_002) + bytes(60_000) for _ in range(3))
    (tmp_path / "x.jpg").write_bytes(plain[:2] + filler + plain[2:])
    assert turned([tmp_path / "x.jpg"]) == {tmp_path / "x.jpg": 6}


def test_the_same_pixels_streamed_packed_and_in_memory(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    paths = [oriented(root / f"{k}.jpg", k, quality=95) for k in range(1, 9)]
    stripes().convert("CMYK").save(root / "c.jpg")
    stripes().convert("P").save(root / "p.gif", transparency=0)
    stripes().save(root / "noext", format="WEBP")
    paths = list_images(root, "images")
    for how in (UPRIGHT, STORED, SRGB):
        whole, unreadable = decode(paths, 12, "center", how)
        assert not unreadable
        pack = Pack(Contents(paths, root, tmp_path), 12, "center", tmp_path, "dataset.path", how)
        np.testing.assert_array_equal(pack.build().images, whole)
        streamed = ImageFiles.of(paths, 12, "center", how)
        np.testing.assert_array_equal(next(streamed.batches([at(range(len(paths)))])).numpy(), whole)
    keys = {
        Pack(Contents(paths, root, tmp_path), 12, "center", tmp_path, "", how).artifact.key
        for how in (UPRIGHT, STORED, SRGB)
    }
    assert len(keys) == 3  # packed apart
    plain = [root / "c.jpg", root / "1.jpg"]
    keys = {
        Pack(Contents(plain, root, tmp_path), 12, "center", tmp_path, "", how)._artifact("x").key
        for how in (UPRIGHT, STORED)
    }
    assert len(keys) == 1  # as ever where nothing is turned


def at(positions):
    import torch

    return torch.tensor(list(positions))


# ------------------------------------------------------------------------------------------------------------- modes


def pixels_of(path: Path, how: Reading = STORED) -> np.ndarray:
    rgb = read_rgb(path, how)
    assert isinstance(rgb, Image.Image), rgb
    return np.asarray(rgb)


def test_transparency_is_dropped_and_the_color_stays(tmp_path):
    rgba = np.asarray(stripes().convert("RGBA")).copy()
    rgba[..., 3] = RNG.integers(0, 256, rgba.shape[:2])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "rgba.png"), rgba[..., :3])
    palette = stripes().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    for name, transparency in (("one.gif", 0), ("one.png", 0), ("all.png", bytes(range(0, 80, 10)))):
        palette.save(tmp_path / name, transparency=transparency)
        np.testing.assert_array_equal(pixels_of(tmp_path / name), np.asarray(palette.convert("RGB")))
    gray = np.stack([np.arange(64, dtype=np.uint8).reshape(8, 8) * 4, np.full((8, 8), 9, np.uint8)], 2)
    Image.fromarray(gray, "LA").save(tmp_path / "la.png")
    assert (pixels_of(tmp_path / "la.png") == gray[..., :1]).all()


@pytest.mark.parametrize(("name", "kind"), [("x.png", "PNG"), ("x.tif", "TIFF"), ("x.pgm", "PPM")])
def test_gray_of_sixteen_bits(tmp_path, name, kind):
    values = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / name, format=kind)
    assert pixels_of(tmp_path / name)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_color_of_sixteen_bits_keeps_its_upper_bits(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head, row = (
        struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0),
        b"\0" + struct.pack(">6H", 0x1234, 0xFFFF, 0, 1, 0x80FF, 0x7F00),
    )
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    )
    assert pixels_of(tmp_path / "x.png").tolist() == [[[0x12, 0xFF, 0], [0, 0x80, 0x7F]]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_no_known_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.arange(9, dtype=dtype).reshape(3, 3)).save(tmp_path / "x.tif")
    assert "have no known range" in read_rgb(tmp_path / "x.tif")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_of_an_animation_the_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (16, 16), color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    frames[0].save(tmp_path / "x", format=kind, save_all=True, append_images=frames[1:])
    red, green, blue = pixels_of(tmp_path / "x")[8, 8].tolist()
    assert red > 180
    assert green < 30
    assert blue < 30


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "LA", "RGB"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    name = "x.jpg" if mode == "CMYK" else "x.png"
    stripes().convert(mode).save(tmp_path / name)
    assert pixels_of(tmp_path / name).shape == (24, 40, 3)


def wide_profile() -> bytes:
    """Adobe RGB (1998) in its essence: sRGB's primaries but for a greener green, gamma 2.2."""
    tags: dict[bytes, bytes] = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"wide\0" + bytes(78),
        b"wtpt": xyz(0.9505, 1.0, 1.0891),
        b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)),
    }  # fmt: skip
    place, table, data = 132 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        body += bytes(-len(body) % 4)
        table += name + struct.pack(">II", place + len(data), len(body))
        data += body
    head = struct.pack(">I4sI4s4s4s", place + len(data), b"\0\0\0\0", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def test_a_wide_gamut_becomes_srgb_by_choice(tmp_path):
    color = (120, 180, 60)
    Image.new("RGB", (8, 8), color).save(tmp_path / "x.png", icc_profile=wide_profile())
    assert pixels_of(tmp_path / "x.png")[0, 0].tolist() == list(color)
    red, green, blue = pixels_of(tmp_path / "x.png", SRGB)[0, 0].tolist()
    assert red < 115
    assert abs(green - 180) < 4
    assert blue < 60


def test_srgb_stays_srgb_and_no_profile_stays_as_it_is(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stripes().save(tmp_path / "x.png", icc_profile=profile)
    stripes().save(tmp_path / "y.png")
    assert np.abs(pixels_of(tmp_path / "x.png", SRGB).astype(int) - pixels_of(tmp_path / "x.png")).max() <= 1
    np.testing.assert_array_equal(pixels_of(tmp_path / "y.png", SRGB), pixels_of(tmp_path / "y.png"))


@pytest.mark.parametrize("mode", ["RGBA", "P", "L"])
def test_a_profile_goes_with_every_mode(tmp_path, mode):
    stripes().convert(mode).save(tmp_path / "x.png", icc_profile=wide_profile())
    assert pixels_of(tmp_path / "x.png", SRGB).shape == (24, 40, 3)


def test_a_profile_that_is_none_is_named(tmp_path):
    stripes().save(tmp_path / "x.png", icc_profile=b"nonsense")
    assert isinstance(read_rgb(tmp_path / "x.png", STORED), Image.Image)
    told = read_rgb(tmp_path / "x.png", SRGB)
    assert "its color profile cannot be used" in told
    assert "dataset.color=stored does without" in told


# ---------------------------------------------------------------------------------------------- what Pillow does not know


@pytest.mark.parametrize("ending", sorted(NEEDED))
def test_what_no_reader_knows_says_which_package_does(tmp_path, ending):
    (tmp_path / f"x{ending}").write_bytes(b"\0\0\0\x1cftypzzzz" + bytes(40))
    assert list_images(tmp_path, "images")
    told = read_rgb(tmp_path / f"x{ending}")
    assert NEEDED[ending] in told or "not an image" in told or "cannot" in told


def test_a_plug_in_is_taken_where_it_is_installed(tmp_path, start):
    """A stand-in for pillow_heif: `register_heif_opener` teaches Pillow files that begin as HEIC does."""
    (tmp_path / "pillow_heif.py").write_text(
        textwrap.dedent("""
        from PIL import Image, ImageFile
        class Heic(ImageFile.ImageFile):
            format = "HEIF"
            def _open(self):
                self._mode, self._size = "RGB", (5, 4)
                self.tile = []
            def load(self):
                self.im = Image.new("RGB", (5, 4), (1, 2, 3)).im
                return super().load()
        def register_heif_opener():
            Image.register_open("HEIF", Heic, lambda head: head[4:12] == b"ftypheic")
    """)
    )
    for name in ("x.heic", "noext"):
        (tmp_path / name).write_bytes(b"\0\0\0\x1cftypheic" + bytes(40))
    script = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from kdrun.data.images import list_images
from kdrun.data.reading import read_rgb
found = list_images(Path({str(tmp_path)!r}), "images")
print([path.name for path in found], [read_rgb(path).getpixel((0, 0)) for path in found])
"""
    process = start(script)
    out, error = process.communicate(timeout=60)
    assert "['noext', 'x.heic'] [(1, 2, 3), (1, 2, 3)]" in str(out), error


def test_plug_ins_that_are_absent_are_passed_by(monkeypatch):
    monkeypatch.setattr(reading, "PLUGINS", {"no_such_package": ("register",)})
    reading.register_plugins.cache_clear()
    try:
        assert reading.register_plugins() == ()
    finally:
        reading.register_plugins.cache_clear()


def test_what_had_no_reader_is_packed_anew_once_it_has(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "x.heic"
    stripes().save(path, format="PNG")

    def pack():
        return Pack(Contents([path], path.parent, tmp_path), 8, "center", tmp_path, "dataset.path").build()

    told = f"{path} ({reading.NO_READER}pip install pillow-heif)"
    with monkeypatch.context() as without:
        without.setattr("kdrun.data.images.read_rgb", lambda path, how: told)
        without.setattr("kdrun.data.packed.read_rgb", lambda path, how: told)
        assert pack().unreadable == {0: told}
        assert pack().unreadable == {0: told}
    assert not pack().unreadable
