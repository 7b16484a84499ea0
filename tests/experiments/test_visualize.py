"""The default experiment on many images: maps of some, tables of all."""

from vis.store.run_folder import load_run

SMALL = (
    "dataset=digits",
    "model=vgg_small",
    "model.weights=null",
    "model.init=kaiming_normal",
    "method=[saliency,gbp]",
)


def test_maps_of_the_first_images_and_tables_of_all(vis_run):
    words = (*SMALL, "dataset.limit=5", "batch_size=2", "target=[max,3]")
    whole, some = (load_run(vis_run(*words, *more).folder) for more in ((), ("+experiment.maps=3",)))
    assert some.tables == whole.tables
    images = list(dict.fromkeys(row["image"] for row in whole.rows()))
    assert list(some.arrays) == [name for name in whole.arrays if name.split("/", 1)[1].startswith(tuple(images[:3]))]
    captions = [(run.folder / "figures.json").read_text() for run in (whole, some)]
    assert "maps.npz" not in captions[0]
    assert "First 6 of 10 rows; the maps of the first 3 images are in maps.npz" in captions[1]


def test_a_number_of_maps_is_positive(vis_run):
    ran = vis_run(*SMALL, "+experiment.maps=0")
    assert ran.code == 2
    assert "experiment.maps=0: give the number of images whose maps are stored, or null for all" in ran.err
