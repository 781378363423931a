"""The path manager through which all files are opened: local paths, http(s):// and detectron2://."""

from typing import Any, List

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

__all__ = ["PathManager", "PathHandler"]

PathManager = _PathManager()


class Detectron2Handler(PathHandler):
    """detectron2://x is the file x on the server of Detectron2's published models."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _url(self, path: str) -> str:
        return self.S3_DETECTRON2_PREFIX + path.removeprefix(self.PREFIX)

    def _get_supported_prefixes(self) -> List[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs: Any):
        return PathManager.open(self._url(path), mode, **kwargs)


for _handler in (HTTPURLHandler(), Detectron2Handler()):
    PathManager.register_handler(_handler)
