"""The stamps package in small, as a `.deb` file."""

import hashlib
import io
import tarfile

import numpy as np
import soundfile
from PIL import Image

from jaxvl.data.sources.demo import stamps

SVG = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" {size}>{body}</svg>'
CIRCLE = '<circle cx="50%" cy="50%" r="40%" fill="#d22"/>'


def png(colour, size=(20, 10)):
    out = io.BytesIO()
    Image.new("RGBA", size, colour).save(out, "PNG")
    return out.getvalue()


def sound(seconds, rate, channels=1, pitch=440.0, kind="OGG"):
    """A tone; its channels differ, and their mean is half as loud as the first."""
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    out = io.BytesIO()
    soundfile.write(out, np.stack([wave, 0 * wave], 1)[:, :channels], rate, format=kind)
    return out.getvalue()


def text(english, **others):
    lines = [f"{locale.replace('__', '@')}.utf8={words}" for locale, words in others.items()]
    return "\n".join([english, *lines, ""]).encode()


def files():
    """Path below the stamps' folder -> content. Each picture has a colour of its own, where it is a
    PNG."""
    same_clip = sound(0.2, 22050, pitch=330)
    return {
        "animals/duck.png": png("yellow"),
        "animals/duck.txt": text("A duck.", de="Eine Ente.", pt_BR="Um pato.", pt="Um pato!"),
        "animals/duck_desc.ogg": sound(0.3, 44100),
        "animals/duck_desc_fr.ogg": sound(0.5, 44100, 2),
        "animals/duck_desc_pt_BR.wav": sound(0.4, 8000, kind="WAV"),
        "animals/duck_desc_ru.ogg": b"no sound at all",
        "animals/duck.ogg": sound(0.25, 16000, kind="WAV"),
        "animals/duck_desc_fr.ogg.ogg": sound(0.1, 44100),
        "animals/duck.dat": b"nomirror",
        "animals/duck_mirror.png": png("black"),  # no caption of its own
        "animals/goose.svg": SVG.format(
            size='width="10pt" height="10pt"', body=CIRCLE
        ).encode(),  # points, and no viewBox
        "animals/goose.txt": text(
            "A goose.", sr__latin="Guska.", zh_TW="鵝", zh_CN="", nb="En gås."
        ),
        "animals/goose_desc_fr.ogg": same_clip,
        "animals/gander.svg": SVG.format(
            size='width="10" height="10"', body='<text x="1" y="9">€</text>'
        ).encode(),  # needs a font
        "animals/gander.png": png("blue"),
        "animals/gander.txt": text("A gander."),
        "animals/gander_desc_fr.ogg": same_clip,
        "plants/rose.svg": b"<svg, cut sho",
        "plants/rose.png": png("red"),
        "plants/rose.txt": text("A flower."),
        "plants/tulip.png": png("orange"),
        "plants/tulip.txt": text("a flower"),  # the same caption, said otherwise
        "plants/tree.png": png("green"),
        "plants/tree.txt": text("A tree."),
        "plants/tree2.png": png("lime"),
        "plants/tree2.txt": text("An old tree."),  # the same file but for its number
        "plants/secret.png": png("white"),
        "plants/secret.txt": text("", de="Nur deutsch."),  # no English caption
        "plants/lost.txt": text("No picture."),
        "plants/lost_desc_fr.ogg": sound(0.1, 16000),
        "symbols/math/7.png": png("gray"),
        "symbols/math/7.txt": text("Seven.", de="Sieben."),
        "symbols/math/7.ogg": sound(0.1, 16000),
        "symbols/math/7_de.ogg": sound(0.12, 16000),
        "symbols/math/7_zh_tw.ogg": sound(0.14, 16000),
    }


COUNTS = {
    "images": 8,
    "concepts": 7,
    "locales": 7,
    "captions": 8 + 3 + 3 + 1,
    "groups": 5,
    "clips/speech": 5,
    "clips/sound": 1,
    "clips/symbol": 3,
    "clips_unreadable": 1,
}


def archive(members):
    """An `ar` archive of name -> bytes."""
    out = b"!<arch>\n"
    for name, data in members.items():
        out += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
            + data
            + b"\n" * (len(data) % 2)
        )
    return out


def tar(content, mode="w:xz"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as files_:
        for name, data in content.items():
            about = tarfile.TarInfo(f"./{stamps.STAMPS}/{name}")
            about.size = len(data)
            files_.addfile(about, io.BytesIO(data))
    return out.getvalue()


def write(path, content=None):
    """The package at `path`; returns its SHA-256."""
    data = archive(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": b"odd",
            "data.tar.xz": tar(files() if content is None else content),
        }
    )
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
