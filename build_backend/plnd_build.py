"""setuptools, and one line more: every wheel, editable ones too, puts `lm_eval_plnd.pth` into site-packages.

setuptools itself has no portable way to place a file there (`data_files` go to the prefix, and an editable install
takes none at all). pip reads the wheel's RECORD, so `pip uninstall` removes the file again. What the line does is
told in `lm_eval_plnd/bridge.py`.
"""

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the other hooks of PEP 517 and 660, unchanged

PTH = Path(__file__).with_name("lm_eval_plnd.pth")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """PEP 517: the wheel of setuptools with the start-up line."""
    return _with_pth(wheel_directory, build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """PEP 660: the editable wheel of setuptools with the start-up line."""
    return _with_pth(wheel_directory, build_meta.build_editable(wheel_directory, config_settings, metadata_directory))


def _with_pth(directory, name):
    """Rewrite the wheel `name` with the file and its RECORD entry added; everything else stays as it is."""
    path, content = Path(directory, name), PTH.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    new = path.with_suffix(".partial")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as wheel:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith(".dist-info/RECORD"):
                entry = zipfile.ZipInfo(PTH.name, member.date_time)
                entry.external_attr, entry.compress_type = member.external_attr, member.compress_type
                wheel.writestr(entry, content)
                data += f"{PTH.name},sha256={digest},{len(content)}\n".encode()
            wheel.writestr(member, data)
    new.replace(path)
    return name
