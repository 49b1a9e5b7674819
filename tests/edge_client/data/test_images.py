"""Images become the very pixels that the checkpoint's own processor makes of them, and what is none is named."""

import datasets
import numpy as np
import PIL.Image
import pytest
import transformers

from edge_client.data.images import encode_images, pixel_values
from edge_client.errors import BaseModelError, DataError
from protocol.manifest import Task, TaskKind

TASK = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("cat", "dog"))
CROPPED = {"size": {"shortest_edge": 12}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True}


@pytest.fixture(scope="module")
def processor():
    return transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5, 0.4, 0.3])


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def images_of(rows, processor):
    return [example.inputs[0] for example in encode_images(rows, TASK, processor)]


@pytest.mark.parametrize("settings", [{}, CROPPED], ids=["resized", "cropped"])
def test_resizing_once_and_normalising_every_batch_is_what_the_processor_does_in_one(settings):
    processor = transformers.ViTImageProcessorPil(**{"size": {"height": 8, "width": 8}} | settings)
    given = [pixels(*size, seed) for seed, size in enumerate([(8, 8), (32, 32), (7, 19), (3, 3), (1, 5)])]
    found = images_of([{"image": one, "label": 0} for one in given], processor)
    assert {(image.pixels.shape, image.pixels.dtype) for image in found} == {((3, 8, 8), np.dtype(np.uint8))}
    whole = processor(given, input_data_format="channels_last", return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(pixel_values(found, processor), whole)
    assert pixel_values(found, processor).dtype == np.float32


def test_an_image_is_the_same_from_an_array_a_picture_and_a_data_set(processor):
    array = pixels(20, 10)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    stored = datasets.Dataset.from_list([{"image": PIL.Image.fromarray(array), "label": 1}], features=features)
    found = [
        images_of(rows, processor)[0].pixels
        for rows in ([{"image": array, "label": 1}], [{"image": PIL.Image.fromarray(array), "label": 1}], stored)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_a_picture_of_another_mode_is_converted(mode, processor):
    (image,) = images_of([{"image": PIL.Image.new(mode, (9, 9)), "label": 0}], processor)
    assert image.pixels.shape == (3, 8, 8)


@pytest.mark.parametrize("label", ["dog", 1, np.int64(1)])
def test_a_label_may_be_a_name_or_an_index(label, processor):
    assert encode_images([{"image": pixels(4, 4), "label": label}], TASK, processor)[0].label == 1.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"img": pixels(4, 4), "label": 0}, "expected a column 'image', there are img, label"),
        ({"image": pixels(4, 4).astype(np.float32), "label": 0}, r"expected uint8 .* got float32 \[4, 4, 3\]"),
        ({"image": pixels(4, 4).transpose(2, 0, 1), "label": 0}, r"got uint8 \[3, 4, 4\]"),
        ({"image": pixels(4, 4)[..., :1], "label": 0}, r"got uint8 \[4, 4, 1\]"),
        ({"image": pixels(4, 4)[..., 0], "label": 0}, r"got uint8 \[4, 4\]"),
        ({"image": pixels(0, 4), "label": 0}, r"got uint8 \[0, 4, 3\]"),
        ({"image": "a.png", "label": 0}, "expected a NumPy array or a PIL image, got str"),
        ({"image": pixels(4, 4), "label": 2}, "label 2 is none of the task's"),
        ({"image": pixels(4, 4)}, "label None is none of the task's"),
        (pixels(4, 4), "expected a map"),
    ],
)
def test_what_is_no_image_or_label_is_named_with_its_row(row, message, processor):
    with pytest.raises(DataError, match=f"row 1: .*{message}"):
        encode_images([{"image": pixels(4, 4), "label": 0}, row], TASK, processor)


def test_a_picture_that_ends_too_early_is_named(processor, tmp_path):
    PIL.Image.fromarray(pixels(64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-5000])
    with PIL.Image.open(tmp_path / "a.png") as image, pytest.raises(DataError, match=r"row 0: .*cannot be decoded"):
        encode_images([{"image": image, "label": 0}], TASK, processor)


def test_a_processor_that_leaves_images_of_different_sizes_is_refused():
    processor = transformers.ViTImageProcessorPil(size={"shortest_edge": 8})
    rows = [{"image": pixels(*size), "label": 0} for size in ((8, 8), (8, 16))]
    with pytest.raises(BaseModelError, match=r"in 2 sizes, such as \(3, 8, 8\) and \(3, 8, 16\)"):
        encode_images(rows, TASK, processor)
