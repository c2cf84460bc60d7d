"""Figures of standard benchmarks: numpy in, numbers out.

classification   accuracy, mean recall per class, F1, mean average precision, accuracy of the worst
                 group
retrieval        recall at k in both directions
pairs            image, text and group scores of a few images and texts that belong together;
                 Jaccard index
"""
