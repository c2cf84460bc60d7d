"""The packages of the emoji corpus in small: written to a folder, and served by an `npm` that only
copies it."""

import io
import json
import os

from PIL import Image

from jaxvl.data.sources.demo import emoji

# Code point -> (characters, English name, group). Cricket the insect and cricket the game, as in
# the real packages.
EMOJI = {
    "1f600": ("😀", "grinning face", "Smileys & Emotion"),
    "1f468-200d-1f33e": ("👨‍🌾", "man farmer", "People & Body"),
    "1f469-200d-1f33e": ("👩‍🌾", "woman farmer", "People & Body"),
    "1f997": ("🦗", "cricket", "Animals & Nature"),
    "1f3cf": ("🏏", "cricket game", "Activities"),
    "2764": ("❤️", "red heart", "Smileys & Emotion"),
    "31-20e3": ("1️⃣", "keycap: 1", "Symbols"),
    "1f1e9-1f1ea": ("🇩🇪", "flag: Germany", "Flags"),
}
COLOURS = ("#d22", "#2d2", "#22d", "#dd2", "#2dd", "#d2d", "#888", "#fa0")
NAMES = {key: text.replace(": ", "-").replace(" ", "-") for key, (_, text, _) in EMOJI.items()}
ODD = "31-20e3"  # absent from every list of code points; found as `keycap-1`


def write(folder):
    """All packages below `folder`, as npm would lay them out."""
    put = lambda name, value: (
        (folder / name).parent.mkdir(parents=True, exist_ok=True),
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8"),
    )
    put(
        "unicode-emoji-json/data-by-emoji.json",
        {c: {"name": n, "group": g} for c, n, g in EMOJI.values()},
    )
    for style, (package, *_) in emoji.STYLES.items():
        if not package.startswith("@iconify"):
            continue
        icons = {
            NAMES[k]: {"body": f'<circle cx="16" cy="16" r="12" fill="{COLOURS[i]}"/>'}
            for i, k in enumerate(EMOJI)
        }
        icons["not-an-emoji"] = {"body": "<g/>"}
        aliases = {}
        if (
            style not in emoji.CODED
        ):  # no code points, and an alias that shows another emoji's picture
            aliases = {"cricket": {"parent": "cricket-game"}, "grinning-face": {"parent": "happy"}}
            icons["happy"] = icons.pop("grinning-face")
            del icons["cricket"], icons["flag-Germany"]
        put(
            f"{package}/icons.json", {"icons": icons, "aliases": aliases, "width": 32, "height": 32}
        )
        if style in emoji.CODED:
            chars = {k: NAMES[k] for k in EMOJI if k != ODD} | {
                "2764-fe0f": NAMES["2764"],
                "e001": "not-an-emoji",
            }
            put(f"{package}/chars.json", chars)
    assets = folder / emoji.STYLES["fluent-3d"][0] / "assets"
    assets.mkdir(parents=True)
    for name in ("1f600", "2764-fe0f", "1f468-200d-1f33e", "ffff"):
        out = io.BytesIO()
        Image.new("RGBA", (20, 10), (250, 10, 10, 255)).save(out, "WEBP", lossless=True)
        (assets / f"{name}.webp").write_bytes(out.getvalue())
    for package, part, chosen in (
        ("cldr-annotations-full", "annotations", lambda k: "200d" not in k),
        ("cldr-annotations-derived-full", "annotationsDerived", lambda k: "200d" in k),
    ):
        for locale, word in (("en", "{}"), ("de", "{} auf Deutsch"), ("zz", "{}")):
            found = {
                c: {"tts": [word.format(n)], "default": [word.format(n), f"{locale} keyword"]}
                for k, (c, n, _) in EMOJI.items()
                if chosen(k)
            }
            if locale == "zz":  # too few names to count
                found = dict(list(found.items())[:1])
            put(f"{package}/{part}/{locale}/annotations.json", {part: {"annotations": found}})


# 8 emoji in the four sets with code points; 6 in the four without (a cricket and the flag are not
# drawn); 3 WebP files.
IMAGES = 4 * 8 + 4 * 6 + 3


def client(folder, script):
    """An executable `npm` in `folder`; returns the PATH that finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "npm").write_text("#!/bin/sh\n" + script)
    (folder / "npm").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def serving(modules):
    """The script of an npm that copies `modules`, and leaves its arguments beside it."""
    return f"""echo "$@" > {modules}.arguments
while [ "$1" != --prefix ]; do shift; done
cp -r {modules} "$2/node_modules"
"""
