"""The methods of docs/methods.md and tools/grid.py as one table: paper, equation, and how a method is run."""

from dataclasses import dataclass

# Family -> heading in docs/methods.md.
FAMILIES = {
    'loss': 'Losses',
    'sampling': 'Re-sampling',
    'mixing': 'Mixing',
    'two_stage': 'Two stages',
    'representation': 'Representation',
    'pretrained': 'Pretrained weights',
}


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: as in configs/method/NAME.yaml and published.csv.
        family: a key of FAMILIES.
        title: at most 36 characters.
        paper: authors, venue and year.
        equation: one line, in the symbols that docs/methods.md explains.
        stage1: the method whose model of the same seed is the start; '' for random or pretrained weights.
        start: checkpoint of stage 1. The last one, so that the valid split is not used for two selections.
        teacher: the method whose last.pth of the same seed is LOSS.TEACHER; '' for none.
        script: main.py, or tau_norm.py, which re-balances the model of stage 1 without training.
    """

    name: str
    family: str
    title: str
    paper: str
    equation: str
    stage1: str = ''
    start: str = 'last.pth'
    teacher: str = ''
    script: str = 'main.py'

    @property
    def needs(self) -> tuple[str, ...]:
        """Methods that must be run before with the same seed."""
        return tuple(name for name in (self.stage1, self.teacher) if name)


_CAO, _KANG, _TRICKS = 'Cao et al., NeurIPS 2019', 'Kang et al., ICLR 2020', 'Zhang et al., AAAI 2021'
_EFFECTIVE = 'w_j ∝ (1 − β) / (1 − β^n_j)'

# Lines are as long as their equation: the table is easier to read without line breaks in equations.
# fmt: off
_ROWS = (
    Method('ce', 'loss', 'Cross entropy', 'the baseline', '−ln p_y'),
    Method('label_smoothing', 'loss', 'Label smoothing', 'Szegedy et al., CVPR 2016',
           '−Σ_j q_j ln p_j, q = (1 − ε) [j = y] + ε / C'),
    Method('focal', 'loss', 'Focal loss', 'Lin et al., ICCV 2017', '−(1 − p_y)^γ ln p_y'),
    Method('cb_ce', 'loss', 'Class-balanced cross entropy', 'Cui et al., CVPR 2019', f'−w_y ln p_y, {_EFFECTIVE}'),
    Method('cb_focal', 'loss', 'Class-balanced focal loss', 'Cui et al., CVPR 2019',
           f'−w_y Σ_j (1 − s_j)^γ ln s_j, s_j = sigmoid(z_j if j = y else −z_j), {_EFFECTIVE}'),
    Method('cs_ce', 'loss', 'Cost-sensitive cross entropy', 'Japkowicz and Stephen, IDA 2002',
           '−w_y ln p_y, w_j ∝ 1 / n_j'),
    Method('sqrt_cs_ce', 'loss', 'Square-root cost-sensitive CE', _TRICKS, '−w_y ln p_y, w_j ∝ 1 / √n_j'),
    Method('ldam', 'loss', 'LDAM', _CAO, '−ln softmax(s (cos θ_j − Δ_j [j = y]))_y, Δ_j ∝ n_j^(−1/4)'),
    Method('ldam_drw', 'loss', 'LDAM-DRW', _CAO, f'LDAM; weighted from t = 4T/5 on, {_EFFECTIVE}'),
    Method('seql', 'loss', 'Softmax equalization loss', 'Tan et al., CVPR 2020',
           '−ln(e^z_y / Σ_j u_j e^z_j), u_j = 1 − b [π_j < λ] [j ≠ y], b ~ Bernoulli(γ)'),
    Method('cdt', 'loss', 'Class-dependent temperatures', 'Ye et al., arXiv 2020',
           '−ln softmax(z_j / a_j)_y, a_j = (n_max / n_j)^γ'),
    Method('drw_cdt', 'loss', 'Class-dependent temperatures, DRW', f'Ye et al., arXiv 2020; {_TRICKS}',
           'as without DRW; weighted from t = 4T/5 on, w_j ∝ 1 / n_j'),
    Method('balanced_softmax', 'loss', 'Balanced softmax', 'Ren et al., NeurIPS 2020',
           '−ln(n_y e^z_y / Σ_j n_j e^z_j)'),
    Method('drw_balanced_softmax', 'loss', 'Balanced softmax, DRW', f'Ren et al., NeurIPS 2020; {_TRICKS}',
           'as without DRW; weighted from t = 4T/5 on, w_j ∝ 1 / n_j'),
    Method('logit_adjustment', 'loss', 'Logit adjustment', 'Menon et al., ICLR 2021', '−ln softmax(z_j + τ ln π_j)_y'),
    Method('vs', 'loss', 'Vector scaling loss', 'Kini et al., NeurIPS 2021',
           '−ln softmax((n_j / n_max)^γ z_j + τ ln π_j)_y'),
    Method('label_aware_smoothing', 'loss', 'Label-aware smoothing', 'Zhong et al., CVPR 2021',
           '−Σ_j q_j ln p_j, q_y = 1 − ε(n_y), the rest even; ε rises with n_y'),
    Method('influence_balanced', 'loss', 'Influence-balanced loss, DRW', 'Park et al., ICCV 2021',
           '−w_y ln p_y / (‖p − [j = y]‖₁ ‖f‖₁) from t = 4T/5 on, w_j ∝ 1 / n_j'),
    Method('seesaw', 'loss', 'Seesaw loss', 'Wang et al., CVPR 2021',
           '−ln(e^z_y / Σ_j S_j e^z_j), S_j = min(1, n_j / n_y)^a max(1, p_j / p_y)^b, S_y = 1'),
    Method('gce', 'loss', 'Generalized cross entropy', 'Zhang and Sabuncu, NeurIPS 2018', '(1 − p_y^q) / q'),
    Method('sce', 'loss', 'Symmetric cross entropy', 'Wang et al., ICCV 2019',
           '−a ln p_y − b Σ_j p_j ln q_j, q one-hot, ln 0 := −4'),
    Method('arcface', 'loss', 'ArcFace', 'Deng et al., CVPR 2019', '−ln softmax(s cos(θ_j + m [j = y]))_y'),
    Method('sub_center_arcface', 'loss', 'Sub-center ArcFace, dynamic margins',
           'Deng et al., ECCV 2020; Ha et al., arXiv:2010.05350',
           '−ln softmax(s cos(θ_j + m_j [j = y]))_y, θ_j to the nearest of K centers, m_j = a n_j^(−1/4) + b'),
    Method('cosface', 'loss', 'CosFace', 'Wang et al., CVPR 2018', '−ln softmax(s (cos θ_j − m [j = y]))_y'),
    Method('drw_cs_ce', 'loss', 'Cost-sensitive CE, DRW', f'{_CAO}; {_TRICKS}',
           '−ln p_y; weighted from t = 4T/5 on, w_j ∝ 1 / n_j'),
    Method('drw_cb_ce', 'loss', 'Class-balanced CE, DRW', _CAO, f'−ln p_y; weighted from t = 4T/5 on, {_EFFECTIVE}'),

    Method('class_balanced', 'sampling', 'Class-balanced sampling', 'Shen et al., ECCV 2016', 'P(j) = 1 / C'),
    Method('sqrt_sampling', 'sampling', 'Square-root sampling', 'Mahajan et al., ECCV 2018', 'P(j) ∝ √n_j'),
    Method('progressive', 'sampling', 'Progressively balanced sampling', _KANG,
           'P(j) = (1 − t/T) π_j + (t/T) / C'),
    Method('effective_number_sampling', 'sampling', 'Effective-number sampling', 'Cui et al., CVPR 2019',
           'P(j) ∝ n_j (1 − β) / (1 − β^n_j)'),
    Method('repeat_factor', 'sampling', 'Repeat-factor sampling', 'Gupta et al., CVPR 2019',
           'each image max(1, √(t₀ / π_j)) times an epoch'),
    Method('drs_class_balanced', 'sampling', 'Class-balanced sampling, deferred', f'{_CAO}; {_TRICKS}',
           'P(j) = π_j; 1 / C from t = 4T/5 on'),
    Method('bbn', 'sampling', 'BBN-style dual sampling', 'Zhou et al., CVPR 2020',
           "−a ln p_y − (1 − a) ln p_y', a = 1 − (t/T)², P(y) = π_y, P(y') ∝ 1 / n_y'"),

    Method('mixup', 'mixing', 'Mixup', 'Zhang et al., ICLR 2018',
           "x ← λx + (1 − λ)x', q = λ[j = y] + (1 − λ)[j = y'], λ ~ Beta(α, α)"),
    Method('cutmix', 'mixing', 'CutMix', 'Yun et al., ICCV 2019',
           "x' pasted into a rectangle of x; q as in mixup, λ the area left"),
    Method('manifold_mixup', 'mixing', 'Manifold mixup', 'Verma et al., ICML 2019',
           "mixup of h_k, the output of a stage k drawn each step (h_0 = x)"),
    Method('remix', 'mixing', 'Remix', 'Chou et al., ECCV Workshops 2020',
           "mixup; all of the label to y' if n_y / n_y' ≥ κ and λ < τ, to y if n_y' / n_y ≥ κ and 1 − λ < τ"),
    Method('cmo', 'mixing', 'CMO', 'Park et al., CVPR 2022', "CutMix; the pasted x' drawn with P(y') ∝ 1 / n_y'"),

    Method('crt', 'two_stage', 'cRT', _KANG, 'stage 2: W re-initialized, f frozen, P(j) = 1 / C', stage1='ce'),
    Method('lws', 'two_stage', 'LWS', _KANG, 'stage 2: z_j = s_j w_j·f, only s learned, P(j) = 1 / C', stage1='ce'),
    Method('ncm', 'two_stage', 'Nearest class mean', _KANG,
           'argmax_j cos(f, μ_j), μ_j the mean f of class j', stage1='ce'),
    Method('tau_norm', 'two_stage', 'τ-normalization', _KANG, 'z_j = w_j·f / ‖w_j‖^τ, τ chosen on valid',
           stage1='ce', script='tau_norm.py'),
    Method('mislas', 'two_stage', 'MiSLAS', 'Zhong et al., CVPR 2021',
           'stage 2 on mixup: label-aware smoothing, z_j = s_j w_j·f, shifted BatchNorm, P(j) = 1 / C', stage1='mixup'),
    Method('weight_balancing_1', 'two_stage', 'Weight balancing, stage 1', 'Alshammari et al., CVPR 2022',
           '−ln p_y + λ ‖θ‖², λ tuned'),
    Method('weight_balancing', 'two_stage', 'Weight balancing', 'Alshammari et al., CVPR 2022',
           f'stage 2: −w_y ln p_y + λ ‖W‖², ‖w_j‖ ≤ δ, {_EFFECTIVE}', stage1='weight_balancing_1'),
    Method('dive', 'two_stage', 'DiVE', 'He et al., ICCV 2021',
           '(1 − a) ℓ + a T² KL(q ‖ softmax(z / T)), q ∝ softmax(z_teacher / T)^b, ℓ and teacher: balanced softmax',
           teacher='balanced_softmax'),

    Method('bcl', 'representation', 'Balanced contrastive learning', 'Zhu et al., CVPR 2022',
           'ℓ − a mean_{p ∈ B_y} ln(e^(v·v_p / T) / Σ_j mean_{k ∈ B_j} e^(v·v_k / T)), ℓ: balanced softmax'),
    Method('supervised_contrastive', 'representation', 'Supervised contrastive loss', 'Khosla et al., NeurIPS 2020',
           'ℓ − a mean_{p: y_p = y} ln(e^(v·v_p / T) / Σ_k e^(v·v_k / T)), v = f / ‖f‖'),
    Method('multi_similarity', 'representation', 'Multi-similarity loss', 'Wang et al., CVPR 2019',
           'ℓ + a (ln(1 + Σ_p e^(−2 (v·v_p − ½))) / 2 + ln(1 + Σ_n e^(50 (v·v_n − ½))) / 50), hard p and n'),
    Method('triplet', 'representation', 'Triplet loss, batch hard', 'Hermans et al., arXiv:1703.07737',
           'ℓ + a [m + max_p ‖v − v_p‖ − min_n ‖v − v_n‖]₊, v = f / ‖f‖, y_p = y ≠ y_n'),
    Method('gem', 'representation', 'GeM pooling', 'Radenovic et al., TPAMI 2019',
           'f_k = (mean over positions of x_k^p)^(1/p), p learned, from 3'),

    Method('linear_probe', 'pretrained', 'Linear probe', 'Kornblith et al., CVPR 2019',
           'f frozen: mean ℓ + λ ‖W‖² / 2, λ chosen on valid'),
    Method('finetune', 'pretrained', 'Fine-tuning', 'Kornblith et al., CVPR 2019',
           'ℓ; W and the last stages of f trained'),
    Method('lift', 'pretrained', 'LIFT', 'Shi et al., ICML 2024',
           'h + s Up(ReLU(Down(h))) in each MLP, −ln softmax(s cos θ_j + τ ln π_j)_y, w_j from μ_j'),
)
# fmt: on
METHODS: dict[str, Method] = {method.name: method for method in _ROWS}

# Methods of published.csv that are not in METHODS -> title.
OTHERS = {
    'class_balanced_loss': 'Class-balanced loss, best form for each data set',
    'drs_cam_balanced': 'CAM-based balanced sampling, deferred',
    'gpaco': 'GPaCo',
    'logit_adjustment_post_hoc': 'Logit adjustment after training',
    'paco': 'PaCo',
    'tricks_combined': 'Tricks combined',
}
