"""Products of the demo data: 16 families of 4 siblings each. All brands are invented."""

from dataclasses import dataclass

VARIANTS_PER_FAMILY = 4


@dataclass(frozen=True, slots=True)
class Variant:
    """One of 4 siblings: a word, a color and an emblem, of which siblings may have some in common."""

    word: str
    color: str
    emblem: str
    content: str = ''  # color of the content of a glass; '': body of the family


@dataclass(frozen=True, slots=True)
class Family:
    """Common properties of 4 siblings: brand, shape of the pack, layout and colors of the label."""

    brand: str
    line: str
    size: str
    department: str
    shape: str  # a key of shapes.SHAPES
    layout: str  # a key of artwork.LAYOUTS
    base: str  # background of the label
    ink: str  # brand and small print
    body: str  # pack or glass around the label
    cap: str  # lid, cap; '': color of the variant
    variants: tuple[Variant, Variant, Variant, Variant]


@dataclass(frozen=True, slots=True)
class Product:
    """One stock keeping unit (SKU), a class of the demo data."""

    family: Family
    variant: Variant

    @property
    def name(self) -> str:
        """Name of the class and of its image folders: letters, digits and spaces only."""
        return f'{self.family.brand} {self.family.line} {self.variant.word} {self.family.size}'

    @property
    def parents(self) -> list[str]:
        """Ancestors in the class hierarchy, root first."""
        packs = {'box': 'boxes', 'pouch': 'pouches', 'flask': 'bottles'}.get(self.family.shape)
        return [
            self.family.department,
            f'{self.family.brand} {self.family.line} {packs or self.family.shape + "s"}',
        ]


FAMILIES = (
    Family(
        *('Norvik', 'Sparkling', '330 ml', 'Drinks', 'can', 'seal', '#e9eef2', '#1d3557', '#c9ced3', ''),
        variants=(
            Variant('Lemon', '#f2c522', 'citrus'),
            Variant('Lime', '#79b82e', 'citrus'),
            Variant('Orange', '#f0801f', 'citrus'),
            Variant('Raspberry', '#d6285f', 'berry'),
        ),
    ),
    Family(
        *('Zumbrel', 'Cola', '330 ml', 'Drinks', 'can', 'wave', '#7d1019', '#fff4e0', '#c9ced3', ''),
        variants=(
            Variant('Classic', '#f3e7d3', 'star'),
            Variant('Zero', '#17171a', 'star'),
            Variant('Cherry', '#e5325a', 'cherry'),
            Variant('Vanilla', '#e9c46a', 'flower'),
        ),
    ),
    Family(
        *(
            'Solenka',
            'Juice',
            '750 ml',
            'Drinks',
            'bottle',
            'band',
            '#fffaf0',
            '#27502a',
            '#f3d9a0',
            '#f4f4f0',
        ),
        variants=(
            Variant('Orange', '#f0861a', 'citrus', '#f39a2d'),
            Variant('Apple', '#9cb83a', 'apple', '#d9c45a'),
            Variant('Carrot', '#e0581c', 'leaf', '#ec7426'),
            Variant('Currant', '#6b1e4f', 'berry', '#57173f'),
        ),
    ),
    Family(
        *('Hollowmere', 'Water', '500 ml', 'Drinks', 'bottle', 'wave', '#f4fafd', '#123a6b', '#cfe6f2', ''),
        variants=(
            Variant('Still', '#9fd3ee', 'drop'),
            Variant('Gentle', '#2f8fd0', 'drop'),
            Variant('Lively', '#12408f', 'drop'),
            Variant('Mint', '#3fae8a', 'leaf'),
        ),
    ),
    Family(
        *('Velmora', 'Olive Oil', '500 ml', 'Pantry', 'bottle', 'frame', '#f6f0dc', '#3b3a1c', '#3f4a1a', ''),
        variants=(
            Variant('Mild', '#d8b13a', 'olive'),
            Variant('Intense', '#2f5a2a', 'olive'),
            Variant('Garlic', '#8a7aa8', 'flower'),
            Variant('Chilli', '#c22a1c', 'chilli'),
        ),
    ),
    Family(
        *('Pellandi', 'Pasta', '500 g', 'Pantry', 'box', 'split', '#1f4e8c', '#ffffff', '#1a3f72', ''),
        variants=(
            Variant('Fusilli', '#e8b830', 'wheat'),
            Variant('Penne', '#e2682a', 'wheat'),
            Variant('Farfalle', '#c9342f', 'wheat'),
            Variant('Wholegrain', '#8a5a2c', 'wheat'),
        ),
    ),
    Family(
        *('Bexlow', 'Crunch', '375 g', 'Breakfast', 'box', 'burst', '#f7d23c', '#8a1c1c', '#d9b020', ''),
        variants=(
            Variant('Honey', '#e08a1a', 'sun'),
            Variant('Cocoa', '#5a3320', 'bean'),
            Variant('Berry', '#b3246b', 'berry'),
            Variant('Apple', '#4f9a36', 'apple'),
        ),
    ),
    Family(
        *('Tamsel', 'Tea', '20 bags', 'Breakfast', 'box', 'frame', '#fbf6ea', '#2f2a24', '#e6dcc4', ''),
        variants=(
            Variant('Green', '#5c9a3e', 'leaf'),
            Variant('Black', '#2e2a2a', 'leaf'),
            Variant('Camomile', '#eab92c', 'flower'),
            Variant('Mint', '#1f8f78', 'leaf'),
        ),
    ),
    Family(
        *('Ottapel', 'Coffee', '250 g', 'Breakfast', 'pouch', 'seal', '#2a201c', '#f0dfc0', '#2a201c', ''),
        variants=(
            Variant('Mild', '#e3b04b', 'bean'),
            Variant('Medium', '#c8642a', 'bean'),
            Variant('Dark', '#8f1d1d', 'bean'),
            Variant('Decaf', '#3d7fae', 'bean'),
        ),
    ),
    Family(
        *('Kesmira', 'Crisps', '150 g', 'Snacks', 'pouch', 'burst', '', '#ffffff', '', ''),
        variants=(
            Variant('Salted', '#d8232f', 'sun'),
            Variant('Paprika', '#ee7a1c', 'chilli'),
            Variant('Onion', '#2f9a4a', 'wave'),
            Variant('Vinegar', '#2a6fc0', 'drop'),
        ),
    ),
    Family(
        *('Fennigo', 'Cat', '85 g', 'Pets', 'pouch', 'band', '#efe9f5', '#4b2a7b', '#5b368f', ''),
        variants=(
            Variant('Salmon', '#f08a78', 'fish'),
            Variant('Tuna', '#3b74b8', 'fish'),
            Variant('Chicken', '#ecc043', 'paw'),
            Variant('Beef', '#9a2f2b', 'paw'),
        ),
    ),
    Family(
        *(
            'Brixomel',
            'Jam',
            '340 g',
            'Breakfast',
            'jar',
            'frame',
            '#fffdf6',
            '#5a1a1a',
            '#a01c2c',
            '#f5efe2',
        ),
        variants=(
            Variant('Strawberry', '#d8303a', 'berry', '#b81f2a'),
            Variant('Raspberry', '#c2185b', 'berry', '#8f1440'),
            Variant('Apricot', '#ef9a2c', 'apple', '#e08a20'),
            Variant('Blueberry', '#3b3f8f', 'berry', '#2a2450'),
        ),
    ),
    Family(
        *('Arbolin', 'Spread', '350 g', 'Breakfast', 'jar', 'seal', '#f3e4c8', '#4a2c14', '#7a4a22', ''),
        variants=(
            Variant('Hazelnut', '#6b3f1d', 'nut', '#5a3216'),
            Variant('Almond', '#2f7d6b', 'nut', '#a8794a'),
            Variant('Peanut', '#d9922e', 'nut', '#b97f3a'),
            Variant('Cashew', '#c8503c', 'nut', '#d8b880'),
        ),
    ),
    Family(
        *('Luvaro', 'Toothpaste', '75 ml', 'Care', 'tube', 'wave', '#ffffff', '#0d3b8c', '#f6f8fa', ''),
        variants=(
            Variant('Fresh', '#1f9ad6', 'wave'),
            Variant('White', '#b8c4d0', 'star'),
            Variant('Herbal', '#3f9a4a', 'leaf'),
            Variant('Gums', '#d8435a', 'drop'),
        ),
    ),
    Family(
        *(
            'Corvessa',
            'Hand Cream',
            '100 ml',
            'Care',
            'tube',
            'split',
            '#fdf3ee',
            '#5a3a4a',
            '#fdf3ee',
            '#e9e2da',
        ),
        variants=(
            Variant('Rose', '#e88aa2', 'flower'),
            Variant('Aloe', '#7fbf9a', 'leaf'),
            Variant('Olive', '#9aa04a', 'olive'),
            Variant('Lavender', '#9a86c8', 'flower'),
        ),
    ),
    Family(
        *('Marrowin', 'Shampoo', '250 ml', 'Care', 'flask', 'seal', '#ffffff', '#26323a', '', ''),
        variants=(
            Variant('Repair', '#8f5aa8', 'leaf'),
            Variant('Volume', '#e07a9a', 'wave'),
            Variant('Shine', '#d9b24a', 'sun'),
            Variant('Calm', '#4a9ab0', 'drop'),
        ),
    ),
)

PRODUCTS = tuple(Product(family, variant) for family in FAMILIES for variant in family.variants)
