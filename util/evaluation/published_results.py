"""The results of the paper: HDMNet, CVPR 2023 (arXiv 2303.14652), its tables of PASCAL-5^i and COCO-20^i.

COCO-20^i is divided as FWB does (interleaved folds).
"""

# The mIoU in percent of each fold, and their mean as it is printed; by dataset, backbone and number of
# supports, named as in the settings.
PUBLISHED = {
    ("pascal", "vgg16", 1): ((64.8, 71.4, 67.7, 56.4), 65.1),
    ("pascal", "vgg16", 5): ((68.1, 73.1, 71.8, 64.0), 69.3),
    ("pascal", "resnet50", 1): ((71.0, 75.4, 68.9, 62.1), 69.4),
    ("pascal", "resnet50", 5): ((71.3, 76.2, 71.3, 68.5), 71.8),
    ("coco", "vgg16", 1): ((40.7, 50.6, 48.2, 44.0), 45.9),
    ("coco", "vgg16", 5): ((47.0, 56.5, 54.1, 51.9), 52.4),
    ("coco", "resnet50", 1): ((43.8, 55.3, 51.6, 49.4), 50.0),
    ("coco", "resnet50", 5): ((50.6, 61.6, 55.7, 56.0), 56.0),
}
