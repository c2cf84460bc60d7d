"""Standard benchmarks as they lie in a local folder; nothing is downloaded.

A layout is a module with `find(folder) -> list[Found]`; `Found.open()` gives a `Benchmark`: rows,
classes, what is measured.

    base          Benchmark, Found
    files         pictures in files, with columns held in memory
    tars          pictures in tar shards
    tables        pictures in Parquet and Arrow tables
    wds           CLIP_benchmark's and DataComp's folders of tars
    imagenet      ImageNet, its variants by WordNet ids, ImageNet-V2; imagenet_languages: other
                  languages, Babel-ImageNet
    objectnet     ObjectNet
    image_folder  a folder for each class (VTAB and others)
    karpathy      COCO and Flickr with captions: Karpathy's JSON, CLIP_benchmark's annotations
    multilingual  Crossmodal-3600, XTD10, CLIP_benchmark's intermediate JSON
    sugar_crepe   SugarCrepe
    mmvp          MMVP-VLM
    hugging_face  Winoground, WinoGAViL and captions as Hugging Face tables
    mmeb          MMEB's evaluation tables
    search        which of them are below a folder, and why the rest is not
    opening       the same set in all processes, or none
    scoring       figures of one benchmark
    results       files of results, the table
"""
