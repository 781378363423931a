"""Errors that name the image they come from, also from a loader's worker process."""

from typing import Callable


class NamingMapper:
    """A dataset mapper whose errors say which image could not be used."""

    def __init__(self, mapper: Callable[[dict], dict]):
        """mapper: dataset dict, with "file_name", to a model's input."""
        self.mapper = mapper

    def __call__(self, dataset_dict: dict) -> dict:
        """Raises RuntimeError naming the image where the mapper raises anything."""
        try:
            return self.mapper(dataset_dict)
        except Exception as error:
            kind = type(error).__name__
            raise RuntimeError(
                f"The image {dataset_dict.get('file_name')} or its annotations can't be used: {kind}: {error}. "
                "Repair it or take it out of the dataset."
            ) from error
