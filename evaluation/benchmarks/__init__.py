"""One protocol per file: which data, which metric, which settings.

A benchmark of your own is a file in this folder:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class PetsOptions(Options):
        data: str = option("pets", help="folder of class folders")
        k: int = option(5, at_least=1, help="neighbours that vote")

    @register("pets", version=1, options=PetsOptions)
    def pets(context: Context, options: PetsOptions) -> Result:
        '''Accuracy of k nearest neighbours on cats and dogs.'''
        pictures = read_labelled(context, "pets", options.data, option="pets.data")
        embedded = context.embed(pictures.images, truth=pictures.truth)
        right = ...  # float64 [n], one value per picture
        return Result(
            metrics={"accuracy_at_1": float(right.mean())},
            counts={"num_pictures": len(right)},
            data=[embedded.provenance],
            settings=options.settings("k"),
            items={"accuracy_at_1": right},
        )

`python -m evaluation.run --help` lists it with its options, and `--option pets.k=3` sets one. `data` states what the
numbers rest on, `settings` what else must be equal for two results to compare, and `items` the values whose mean is the
metric, from which intervals are computed. Metrics of a part of the queries are named "<group>.<metric>" and stated in
`groups`, so that a group of few queries shows no number.
"""
