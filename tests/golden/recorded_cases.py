"""The networks that record.py records: sizes, vocabularies and released settings of each kind of checkpoint."""

import dataclasses

PBMC, REPLOGLE = "Parse_10M_PBMC_cytokines_processed_Xselected", "replogle"
TAHOE = [f"plate{n}_filt_Vevo_Tahoe100M_WServicesFrom_ParseGigalab_processed" for n in (2, 1)]
CELLXGENE = ["proc_cellxgene_combined_2", "proc_cellxgene_combined_1"]
POOL = [PBMC, *TAHOE, REPLOGLE, *CELLXGENE]
CYTOKINES = [f"CYT{n:02d}" for n in range(82)]
KNOCKDOWNS = ["ATP6V1G1", "BRCA2", "C9orf78", "GET3", "NOTINTABLE", "ZW10", "non-targeting"]
DRUGS = ["Allantoin", "Erdafitinib ", "Loperamide (hydrochloride)", "olaparib"]
TREATMENTS = [f"[('{drug}', {dose}, 'uM')]" for drug in DRUGS for dose in (0.05, 0.5, 5.0)]
TREATMENTS.append("[('DMSO_TF', 0.0, 'uM')]")
LINES, TYPES = ["CVCL_0023", "CVCL_0069", "hepg2", "k562"], ["CT0", "CT1", "CT2", "CT3"]
# What the released embedding pickles look like; only their shapes matter here, as the weights replace every row.
PICKLES = {
    "meta_data/idx_to_pertemb.pkl": (range(len(CYTOKINES)), 10),
    "meta_data/new_all_emb.pkl": ([*LINES, *TYPES], 12),
    "meta_data/drug_embed_chemberta_cls_dict.pkl": ([drug.strip() for drug in DRUGS], 11),
    "gene_names/replogle_gene_emb_dict_perturbation_emb_dict.pkl": (KNOCKDOWNS[:4] + KNOCKDOWNS[5:6], 9),
}
LLM = "cov_encoding.celltype_encoding=llm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of network: sizes, vocabularies, sets (data set, perturbation code) and released settings."""

    sets: list[tuple[str, int]]
    perturbations: list[str]
    cell_types: list[str]
    settings: list[str]
    losses: list[str]
    sources: list[str] = dataclasses.field(default_factory=lambda: [PBMC])
    genes: int = 24
    width: int = 32
    depth: int = 2
    covariate_width: int = 8
    cells: int = 5
    replaced_genes: int = 0  # finetuned to another gene count: its input and output layers only
    walks: bool = False  # every step of DDIM, and DDPM


CASES = {
    "case1": Case(
        genes=50, width=64, depth=3, covariate_width=16, cells=8, walks=True,
        sets=[(PBMC, 4), (PBMC, 1), (PBMC, -1)], perturbations=CYTOKINES[:7], cell_types=TYPES,
        settings=["cov_encoding.celltype_encoding=onehot", "model.p_drop_control=0"],
        losses=["cond_sc0", "cond_sc1", "uncond_sc1", "dropcontrol_cond_sc0"],
    ),
    "esm2": Case(
        sets=[(PBMC, 78), (PBMC, 81), (PBMC, -1)], perturbations=CYTOKINES, cell_types=TYPES,
        settings=["cov_encoding.celltype_encoding=onehot", "cov_encoding.pert_encoding=esm2", "model.p_drop_control=0"],
        losses=["cond_sc1"],
    ),
    "genept": Case(
        sources=[REPLOGLE], sets=[(REPLOGLE, 0), (REPLOGLE, 4), (REPLOGLE, 6)],
        perturbations=KNOCKDOWNS, cell_types=LINES,
        settings=[LLM, "cov_encoding.replogle_gene_encoding=genept", "model.p_drop_control=0"],
        losses=["cond_sc1"],
    ),
    "chemberta": Case(
        sources=TAHOE, sets=[(TAHOE[0], 0), (TAHOE[1], 3), (TAHOE[1], 12)],
        perturbations=TREATMENTS, cell_types=LINES,
        settings=[LLM, "cov_encoding.drug_encoding=chemberta_cls"],
        losses=["cond_sc1", "dropcontrol_cond_sc0"],
    ),
    "by_name": Case(
        sources=POOL, sets=[(REPLOGLE, 1), (CELLXGENE[1], -1), (PBMC, 0), (TAHOE[1], 2)],
        perturbations=[CYTOKINES[0], KNOCKDOWNS[0], TREATMENTS[0]], cell_types=LINES + TYPES,
        settings=[LLM, "cov_encoding.pert_encoding=non", "model.separate_embedder=by_name", "model.p_drop_control=1"],
        losses=["cond_sc1", "uncond_sc1"],
    ),
    "finetuned_2k": Case(
        sources=POOL, genes=40, replaced_genes=24, sets=[(TAHOE[0], 0), (TAHOE[1], 3), (TAHOE[1], -1)],
        perturbations=[*TREATMENTS[:3], TREATMENTS[-1]], cell_types=LINES + TYPES,
        settings=[LLM, "model.separate_embedder=by_name", "model.p_drop_control=0"],
        losses=["cond_sc1"],
    ),
}  # fmt: skip
