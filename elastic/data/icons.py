"""The bundled data set `icons`: real drawings of one thing in several styles, with captions and attribution.

This file says what it is and where it lies; `icon_sets` says which drawings belong together, `build_icons` draws
and writes it.
"""

from dataclasses import dataclass
from pathlib import Path

BUNDLED_ICONS = Path(__file__).parent / "bundled" / "icons.parquet"
"""The set as Parquet, inside the package."""

IMAGE_SIZE = 64
"""Width and height of every drawing in pixels."""

NUM_IMAGES, NUM_CLASSES, NUM_DOMAINS, NUM_STYLES = 13_504, 2_570, 12, 20
SPLIT_SIZES = {"train": 9_286, "val": 1_298, "test": 2_920}
"""Images per split; the split is a hash of the class, so val and test classes are unseen in training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IconPackage:
    """One npm package that the set is drawn from, pinned, with what its licence asks us to state."""

    name: str
    """Short name: the folder below `--npm-dir` and the `icon_set` column."""
    npm_name: str
    version: str
    license: str
    """SPDX identifier."""
    author: str
    url: str

    @property
    def attribution(self) -> str:
        """The line that credits the author of a drawing."""
        return f"{self.name} {self.version} by {self.author} ({self.url}), {self.license}"


def _iconify(name: str, version: str, license_: str, author: str, url: str) -> IconPackage:
    npm_name = f"@iconify-json/{name}"
    return IconPackage(name=name, npm_name=npm_name, version=version, license=license_, author=author, url=url)


EMOJI_NAMES = IconPackage(
    name="emojibase",
    npm_name="emojibase-data",
    version="17.0.0",
    license="MIT",
    author="Miles Johnson",
    url="https://github.com/milesj/emojibase",
)
"""Names, keywords and groups of all emoji (from Unicode CLDR); no drawings."""

ICON_PACKAGES = (
    _iconify("noto", "1.2.9", "Apache-2.0", "Google Inc", "https://github.com/googlefonts/noto-emoji"),
    _iconify("noto-v1", "1.2.5", "Apache-2.0", "Google Inc", "https://github.com/googlefonts/noto-emoji"),
    _iconify("twemoji", "1.2.5", "CC-BY-4.0", "Twitter", "https://github.com/jdecked/twemoji"),
    _iconify("openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji", "https://github.com/hfg-gmuend/openmoji"),
    _iconify("fluent-emoji-flat", "1.2.6", "MIT", "Microsoft", "https://github.com/microsoft/fluentui-emoji"),
    _iconify("emojione", "1.2.3", "CC-BY-4.0", "Emoji One", "https://github.com/EmojiTwo/emojitwo"),
    _iconify("emojione-v1", "1.2.3", "CC-BY-SA-4.0", "Emoji One", "https://github.com/joypixels/emojione-legacy"),
    _iconify("fxemoji", "1.2.2", "Apache-2.0", "Mozilla", "https://github.com/mozilla/fxemoji"),
    _iconify("flag", "1.2.12", "MIT", "Panayiotis Lipiridis", "https://github.com/lipis/flag-icons"),
    _iconify("circle-flags", "1.2.11", "MIT", "HatScripts", "https://github.com/HatScripts/circle-flags"),
    _iconify("flagpack", "1.2.8", "MIT", "Yummygum", "https://github.com/Yummygum/flagpack-core"),
    _iconify("cif", "1.2.7", "CC0-1.0", "creativeLabs Lukasz Holeczek", "https://github.com/coreui/coreui-icons"),
    _iconify("logos", "1.2.19", "CC0-1.0", "Gil Barbara", "https://github.com/gilbarbara/logos"),
    _iconify("skill-icons", "1.2.4", "MIT", "tandpfun", "https://github.com/tandpfun/skill-icons"),
    _iconify("devicon", "1.2.68", "MIT", "konpa", "https://github.com/devicons/devicon"),
    _iconify("token-branded", "1.2.45", "MIT", "0xa3k5", "https://github.com/0xa3k5/web3icons"),
    _iconify(
        "cryptocurrency-color",
        "1.2.4",
        "CC0-1.0",
        "Christopher Downer",
        "https://github.com/atomiclabs/cryptocurrency-icons",
    ),
    _iconify("meteocons", "1.2.4", "MIT", "Bas Milius", "https://github.com/basmilius/weather-icons"),
)
"""Every set of drawings. Vendor artwork without a free licence is left out on purpose."""
