"""``catalog://`` paths: short names of published ImageNet backbones in Caffe2's format."""

import logging

from iopath.common.file_io import PathHandler

from detectron2.utils.file_io import PathManager

URL = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/"
# BatchNorm is folded into an affine layer in all of them: they belong into models with FrozenBN (or GN).
# Made for images of PIXEL_STD [1, 1, 1]; those of MSRA with STRIDE_IN_1X1.
FILES = {
    "MSRA/R-50": "MSRA/R-50.pkl", "MSRA/R-101": "MSRA/R-101.pkl",
    "FAIR/R-50-GN": "47261647/R-50-GN.pkl", "FAIR/R-101-GN": "47592356/R-101-GN.pkl",
    "FAIR/X-101-32x8d": "20171220/X-101-32x8d.pkl", "FAIR/X-101-64x4d": "FBResNeXt/X-101-64x4d.pkl",
    "FAIR/X-152-32x8d-IN5k": "25093814/X-152-32x8d-IN5k.pkl",
}  # fmt: skip


class ModelCatalog:
    @staticmethod
    def get(name: str) -> str:
        """The URL of ``ImageNetPretrained/<name>``."""
        folder, _, model = name.partition("/")
        if folder != "ImageNetPretrained" or model not in FILES:
            known = ", ".join(f"ImageNetPretrained/{key}" for key in FILES)
            raise RuntimeError(f"catalog://{name} is unknown; known here are {known}. Detectron2 has others.")
        return URL + FILES[model]


class ModelCatalogHandler(PathHandler):
    PREFIX = "catalog://"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _get_local_path(self, path, **kwargs):
        url = ModelCatalog.get(path.removeprefix(self.PREFIX))
        logging.getLogger(__name__).info("%s is %s", path, url)
        return PathManager.get_local_path(url, **kwargs)

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(ModelCatalogHandler())
