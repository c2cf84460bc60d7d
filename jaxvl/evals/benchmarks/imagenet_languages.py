"""Names of ImageNet's classes in other languages, from files of CLIP_benchmark.

ar_classnames.json, it_classnames.json …   all 1,000 classes, under "imagenet1k"; prompts in
                                           ar_zeroshot_classification_templates.json …
babel_imagenet.json                        Babel-ImageNet: {LANGUAGE: [numbers of classes, names]}
                                           in 93 languages; prompts in nllb_dist13b_prompts.json
"""

from __future__ import annotations

import dataclasses
import pathlib

from jaxvl.data.class_sets import PLACE, imagenet_classes, to_template
from jaxvl.data.classes import ClassSet
from jaxvl.data.records import DataError
from jaxvl.evals.benchmarks.files import UP, file_above, json_of, texts_in

_NAMES = "_classnames.json"
_TEMPLATES = "_zeroshot_classification_templates.json"
_SET = "imagenet1k"
_BABEL = "babel_imagenet.json"
_BABEL_PROMPTS = "nllb_dist13b_prompts.json"


@dataclasses.dataclass(frozen=True)
class LanguageClasses:
    """Class names of one language that were found.

    Attributes:
      name: of the benchmark, as in CLIP_benchmark. language: its code in the file's name, or of
        Babel-ImageNet in small letters.
      names: the file of the names. templates: that of the prompts; None: there is none.
      key: of the language in Babel-ImageNet's files; None: of another file.
    """

    name: str
    language: str
    names: pathlib.Path
    templates: pathlib.Path | None
    key: str | None = None

    def load(self) -> tuple[ClassSet, list[int]]:
        """Names and templates, and the numbers in ImageNet of the classes that have a name. Raises
        DataError."""
        content = json_of(self.names)
        total = len(imagenet_classes())
        listed = content.get(self.key or _SET) if isinstance(content, dict) else None
        numbers = list(range(total))
        if self.key is not None:
            if not isinstance(listed, list) or len(listed) != 2:
                raise DataError(f"{self.names}: {self.key!r} must be [numbers of classes, names]")
            numbers, listed = listed
        names = texts_in(listed, f"{self.names}: names of {self.language!r}")
        whole = isinstance(numbers, list) and all(
            isinstance(n, int) and 0 <= n < total for n in numbers
        )
        if (
            not whole
            or len(numbers) != len(names)
            or len(set(numbers)) != len(numbers)
            or not names
        ):
            raise DataError(
                f"{self.names}: {self.language!r} must name classes of ImageNet, by numbers "
                f"from 0 to {total - 1}"
            )
        return ClassSet({self.language: tuple(names)}, self._templates()), numbers

    def _templates(self) -> tuple[str, ...]:
        if self.templates is None:
            return ()
        content = json_of(self.templates)
        listed = content.get(self.key or _SET) if isinstance(content, dict) else None
        if listed is None:
            return ()
        templates = tuple(
            to_template(text)
            for text in texts_in(listed, f"{self.templates}: prompts of {self.language!r}")
        )
        for template in templates:
            if PLACE not in template:
                raise DataError(
                    f"{self.templates}: the prompt {template!r} of {self.language!r} has no "
                    f"place for the name"
                )
        return templates


def language_classes(folder: pathlib.Path) -> list[LanguageClasses]:
    """Class names in other languages than English in the folders above ImageNet's pictures. Raises
    DataError."""
    found = []
    for above in [folder, *folder.parents][: UP + 1]:
        for path in sorted(above.glob(f"??{_NAMES}")):
            language = path.name.removesuffix(_NAMES)
            if language != "en" and _SET in json_of(path):
                templates = above / f"{language}{_TEMPLATES}"
                found.append(
                    LanguageClasses(
                        _SET, language, path, templates if templates.is_file() else None
                    )
                )
    babel = file_above(folder, _BABEL)
    if babel is not None:
        prompts = file_above(folder, _BABEL_PROMPTS)
        content = json_of(babel)
        if not isinstance(content, dict):
            raise DataError(f"{babel}: must hold classes by language")
        found += [
            LanguageClasses("babel_imagenet", key.lower(), babel, prompts, key)
            for key in sorted(content)
        ]
    return found
