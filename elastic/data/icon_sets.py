"""Which drawings of which icon sets show the same thing: the classes of the bundled `icons`.

Pure matching over the sets' JSON files; nothing is drawn here. An emoji is matched by code point where the set
tells it and by CLDR name otherwise, a flag by country code, a logo by its normalised name, a coin by its ticker.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]

EMOJI_SETS = ("noto", "noto-v1", "twemoji", "openmoji", "fluent-emoji-flat", "emojione", "emojione-v1", "fxemoji")
FLAG_SETS = (("flag", "-4x3"), ("circle-flags", ""), ("flagpack", ""), ("cif", ""))
"""Sets of flags with the suffix that follows the country code in an icon's name."""
LOGO_SETS = ("logos", "skill-icons", "devicon")

_COUNTRY_FLAG = re.compile(r"1F1[EF][0-9A-F]-1F1[EF][0-9A-F]")
_REGIONAL_INDICATOR_A = 0x1F1E6
_LOGO_VARIANT = re.compile(r"-(icon|plain|original|wordmark|line|dark|light|background|fill)$")
_MAX_ALIASES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One icon of one set, and what it shows."""

    domain: str
    label: str
    """The instance class, such as `flag/ad`; the same in every style."""
    caption: str
    tags: tuple[str, ...]
    """Keywords."""
    style: str
    """What tells two drawings of one class apart; mostly the name of the set."""
    icon_set: str
    icon_name: str


class IconSet:
    """One unpacked iconify package: icons and aliases by name."""

    def __init__(self, package_dir: Path) -> None:
        self.icons: JsonObject = json.loads((package_dir / "icons.json").read_text("utf-8"))
        chars = package_dir / "chars.json"
        self.name_by_code: dict[str, str] = json.loads(chars.read_text("utf-8")) if chars.exists() else {}

    @property
    def names(self) -> list[str]:
        """Names of the icons themselves, without aliases."""
        return list(self.icons["icons"])

    @property
    def names_and_aliases(self) -> list[str]:
        """Every name that can be asked for, icons first."""
        return self.names + list(self.icons.get("aliases", {}))

    def resolve(self, name: str) -> JsonObject | None:
        """The icon behind a name or alias; `None` if unknown or if the alias turns or mirrors its parent."""
        for _ in range(_MAX_ALIASES):
            if name in self.icons["icons"]:
                return self.icons["icons"][name]
            alias = self.icons.get("aliases", {}).get(name)
            if alias is None or alias.keys() & {"rotate", "hFlip", "vFlip"}:
                return None
            name = alias["parent"]
        return None

    def svg(self, name: str, size: int) -> str | None:
        """A square SVG document of an icon; `None` where `resolve` finds nothing."""
        icon = self.resolve(name)
        if icon is None:
            return None
        # Each of the four falls back from the icon to its set, then to iconify's own default.
        left, top, width, height = (
            icon.get(key, self.icons.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        body = icon["body"].replace("currentColor", "#333")
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{size}" height="{size}">{body}</svg>'
        )


def slug(text: str) -> str:
    """Lower-case ASCII words joined by dashes, as iconify names its emoji."""
    text = text.lower().replace("\u2019", "").replace("'", "").replace("&", "and")
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")


def find_drawings(npm_dir: Path) -> tuple[list[Drawing], dict[str, IconSet]]:
    """Every drawing whose class exists in at least two styles, sorted by set and name, and the opened sets."""
    names = (*EMOJI_SETS, *(name for name, _ in FLAG_SETS), *LOGO_SETS)
    names += ("token-branded", "cryptocurrency-color", "meteocons")
    sets = {name: IconSet(npm_dir / name / "package") for name in names}
    drawings = list(_emoji(npm_dir / "emojibase" / "package", sets))
    drawings += [*_flags(drawings, sets), *_logos(sets), *_coins(sets), *_weather(sets)]
    styles: defaultdict[str, set[str]] = defaultdict(set)
    for drawing in drawings:
        styles[drawing.label].add(drawing.style)
    kept = [drawing for drawing in drawings if len(styles[drawing.label]) >= 2]
    return sorted(kept, key=lambda drawing: (drawing.icon_set, drawing.icon_name)), sets


def _emoji(emojibase: Path, sets: dict[str, IconSet]) -> Iterator[Drawing]:
    groups = json.loads((emojibase / "meta" / "groups.json").read_text("utf-8"))
    group_names, subgroup_names = groups["groups"], groups["subgroups"]
    emoji = [
        entry
        for entry in json.loads((emojibase / "en" / "data.json").read_text("utf-8"))
        if entry.get("group") is not None and group_names[str(entry["group"])] != "component"
    ]
    index = _EmojiIndex(emoji)
    for set_name in EMOJI_SETS:
        icon_names = index.match(set_name, sets[set_name])
        for entry in emoji:
            if entry["hexcode"] in icon_names:
                domain, label, caption = _describe(entry, group_names, subgroup_names)
                yield Drawing(
                    domain=domain,
                    label=label,
                    caption=caption,
                    tags=tuple(entry.get("tags", ())),
                    style=set_name,
                    icon_set=set_name,
                    icon_name=icon_names[entry["hexcode"]],
                )


def _describe(entry: JsonObject, groups: dict[str, str], subgroups: dict[str, str]) -> tuple[str, str, str]:
    """Domain, class and caption of an emoji; flags of countries get a class that flag sets share."""
    group, name, code = groups[str(entry["group"])], entry["label"], entry["hexcode"]
    if group != "flags":
        return f"emoji-{group}", f"emoji/{code}", name
    is_place = name.startswith("flag: ") and subgroups.get(str(entry.get("subgroup"))) != "flag"
    if not is_place:
        return "flags", f"emoji/{code}", name
    country = code
    if _COUNTRY_FLAG.fullmatch(code):
        country = "".join(chr(int(part, 16) - _REGIONAL_INDICATOR_A + ord("a")) for part in code.split("-"))
    return "flags", f"flag/{country}", f"the flag of {name.removeprefix('flag: ')}"


class _EmojiIndex:
    """Finds the icon of each emoji in a set by code point first, by name second."""

    def __init__(self, emoji: list[JsonObject]) -> None:
        self.by_code = {_bare_code(entry["hexcode"]): entry["hexcode"] for entry in emoji}
        self.by_slug: dict[str, str] = {}
        for entry in emoji:
            name, code = entry["label"], entry["hexcode"]
            self.by_slug[slug(name)] = code
            if name.startswith("flag: "):
                place = name.removeprefix("flag: ")
                self.by_slug[slug(f"flag for {place}")] = code
                self.by_slug.setdefault(slug(place), code)
        # fxemoji writes names without any separator.
        self.by_letters = {name.replace("-", ""): code for name, code in self.by_slug.items()}

    def match(self, set_name: str, icons: IconSet) -> dict[str, str]:
        """Icon name by code point sequence; the first match of each emoji stays."""
        found: dict[str, str] = {}
        for raw_code, icon_name in icons.name_by_code.items():
            code = self.by_code.get(_bare_code(raw_code))
            if code is not None:
                found.setdefault(code, icon_name)
        for icon_name in icons.names_and_aliases:
            code = self.by_slug.get(icon_name)
            if code is None and set_name == "fxemoji":
                code = self.by_letters.get(icon_name.replace("-", ""))
            if code is not None:
                found.setdefault(code, icon_name)
        return found


def _bare_code(code: str) -> str:
    """A code point sequence without the selector that only asks for colour."""
    return code.lower().replace("-fe0f", "")


def _flags(emoji: list[Drawing], sets: dict[str, IconSet]) -> Iterator[Drawing]:
    """Flags from sets of flags, for the countries that the emoji know."""
    # The last emoji set's wording stays; all sets take it from the same list.
    countries = {item.label.removeprefix("flag/"): item for item in emoji if item.label.startswith("flag/")}
    for set_name, suffix in FLAG_SETS:
        for country, known in countries.items():
            if sets[set_name].resolve(country + suffix) is not None:
                yield Drawing(
                    domain="flags",
                    label=known.label,
                    caption=known.caption,
                    tags=known.tags,
                    style=set_name,
                    icon_set=set_name,
                    icon_name=country + suffix,
                )


def _brand(icon_name: str) -> str:
    """The brand in a logo's name: its last two variant words removed."""
    return _LOGO_VARIANT.sub("", _LOGO_VARIANT.sub("", icon_name))


def _logos(sets: dict[str, IconSet]) -> Iterator[Drawing]:
    by_set: dict[str, dict[str, str]] = {}
    for set_name in LOGO_SETS:
        preferred_suffix = "-icon" if set_name == "logos" else "-dark"
        chosen: dict[str, str] = {}
        for name in sets[set_name].names:
            if "wordmark" in name:
                continue
            key = _brand(name).replace("-", "").replace("dot", "")
            if key not in chosen or name.endswith(preferred_suffix):
                chosen[key] = name
        by_set[set_name] = chosen
    num_sets = Counter(key for chosen in by_set.values() for key in chosen)
    for set_name, chosen in by_set.items():
        for key, name in chosen.items():
            if num_sets[key] >= 2:
                brand = _brand(by_set["logos"].get(key) or name).replace("-", " ")
                yield Drawing(
                    domain="logos",
                    label=f"logo/{key}",
                    caption=f"the {brand} logo",
                    tags=("brand", "software"),
                    style=set_name,
                    icon_set=set_name,
                    icon_name=name,
                )


def _coins(sets: dict[str, IconSet]) -> Iterator[Drawing]:
    branded = sets["token-branded"].icons["icons"]
    for ticker in sets["cryptocurrency-color"].names:
        variants = [name for name in (ticker, f"{ticker}-background") if name in branded]
        if not variants:
            continue
        places = [("cryptocurrency-color", "cryptocurrency-color", ticker)]
        for name in variants:
            style = "token-branded-bg" if name.endswith("background") else "token-branded"
            places.append((style, "token-branded", name))
        for style, set_name, name in places:
            yield Drawing(
                domain="crypto",
                label=f"coin/{ticker}",
                caption=f"{ticker.upper()} cryptocurrency coin",
                tags=("crypto", "token"),
                style=style,
                icon_set=set_name,
                icon_name=name,
            )


def _weather(sets: dict[str, IconSet]) -> Iterator[Drawing]:
    known = sets["meteocons"].icons["icons"]
    for name in known:
        if f"{name}-fill" not in known:
            continue
        for icon_name, style in ((name, "meteocons-line"), (f"{name}-fill", "meteocons-fill")):
            yield Drawing(
                domain="weather",
                label=f"weather/{name}",
                caption=f"{name.replace('-', ' ')} weather icon",
                tags=("weather",),
                style=style,
                icon_set="meteocons",
                icon_name=icon_name,
            )
