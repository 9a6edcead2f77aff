"""The papers that the library holds: where each lives, what proves it, the results that reproduce it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One paper.

    number    in the plan of the house; it stays
    lives     classes and modules, as import paths
    check     what the tests and results show
    results   names for `jaxlm reproduce`
    """

    number: int
    paper: str
    lives: tuple[str, ...]
    check: str
    results: tuple[str, ...] = ()


ROWS = (
    Row(
        1,
        "textTOvec: Deep Contextualized Neural Autoregressive Topic Models (Gupta et al. 2019)",
        ("jaxlm.models.docnade.DocNADE", "jaxlm.data.newsgroups"),
        "conditionals in numpy; λ = 0 is DocNADE to 1e-6; on 20NSshort a context lowers held-out perplexity",
        ("docnade",),
    ),
    Row(
        5,
        "Why do Nearest Neighbor Language Models Work? (Xu et al. 2023); kNN-LM (Khandelwal et al. 2020)",
        ("jaxlm.memory.knn_lm.KNNLM",),
        "search, vote and mixture in numpy; λ = 0 is the base to the bit; a datastore of the training text helps",
        ("knn-lm",),
    ),
    Row(
        14,
        "Long Expressive Memory (Rusch et al. 2022)",
        ("jaxlm.mixers.lem.LEM",),
        "equations 3 in numpy; bounds of states and gradients; FitzHugh-Nagumo, adding problem, sequential MNIST",
        ("lem-fhn", "lem-adding", "lem-smnist"),
    ),
    Row(
        19,
        "Learning Longer Memory in Recurrent Neural Networks (Mikolov et al. 2014)",
        ("jaxlm.mixers.scrn.SCRN",),
        "both forms in numpy; the context is the exponential average in float64; Penn Treebank beside a plain RNN",
        ("longer-memory",),
    ),
    Row(
        23,
        "Transformers Can Represent n-gram Language Models (Svete & Cotterell 2024)",
        ("jaxlm.analysis.ngram_compiler", "jaxlm.ops.simplex"),
        "compiled weights give every conditional of random n-gram models in float64; what softmax leaks is 2 exp(-β)",
        ("ngram-transformer",),
    ),
    Row(
        26,
        "Exploring the Limits of Language Modeling (Jozefowicz et al. 2016)",
        ("jaxlm.models.char_lm.CharLM", "jaxlm.layers.char_cnn.CharCNN", "jaxlm.ops.sampled"),
        "the character CNN in numpy; the sampled loss and its gradient become the full softmax's as samples grow",
    ),
    Row(
        39,
        "Neural Generation of Regular Expressions from Natural Language (Locascio et al. 2016)",
        ("jaxlm.models.seq2seq.Seq2Seq", "jaxlm.data.regex_text", "jaxlm.data.automata"),
        "attention in numpy; automata against Python's re; held-out descriptions judged by equal minimal automata",
        ("deep-regex",),
    ),
    Row(
        40,
        "Learning without training: The implicit dynamics of in-context learning (Dherin et al. 2025)",
        ("jaxlm.analysis.implicit_update",),
        "a context is a rank-one change of a block's MLP for every prefix, by six mixers in float64; its steps shrink",
        ("implicit-update",),
    ),
    Row(
        41,
        "Large Language Models are Locally Linear Mappings (Golden 2025)",
        ("jaxlm.analysis.detached",),
        "with gates, attention weights and norms held, J x is the output to rounding; five directions hold nine tenths",
        ("detached-jacobian",),
    ),
    Row(
        42,
        "Scaling Laws for Linear Complexity Language Models (Shen et al. 2024)",
        ("jaxlm.mixers.cosformer.CosFormer", "jaxlm.mixers.tnl.TNL", "jaxlm.analysis.power_law"),
        "the recurrences in numpy; fits of known laws with their errors; loss by size beside softmax attention's",
        ("linear-scaling",),
    ),
    Row(
        44,
        "Towards Optimal Learning of Language Models (Gu et al. 2024)",
        ("jaxlm.theory.learning_law",),
        "what a weight is worth by the adjoint; the policy learns in half the steps, its examples contribute the same",
        ("learning-law",),
    ),
    Row(
        47,
        "A Modern Self-Referential Weight Matrix (Irie et al. 2022)",
        ("jaxlm.mixers.srwm.SRWM", "jaxlm.models.few_shot"),
        "equations 5-8 in numpy; Picard sweeps equal the scan; 5-way few-shot above a fixed weight by 20 points",
        ("few-shot",),
    ),
    Row(
        49,
        "CAMELoT: consolidated associative memory (He et al. 2024)",
        ("jaxlm.memory.camelot",),
        "a slot is the mean of its members; an empty memory is the base model; lower perplexity at a window of 128",
        ("camelot",),
    ),
    Row(
        53,
        "Transformers need glasses! Information over-squashing in Language Tasks (Barbero et al. 2024)",
        ("jaxlm.theory.glasses",),
        "n and n + 1 copies approach as 1/n^2, until averaging in bfloat16 tells hardly any pair apart",
        ("glasses",),
    ),
    Row(
        59,
        "When Linear Attention Meets Autoregressive Decoding (You et al. 2024)",
        ("jaxlm.mixers.conv_linear_attention.ConvLinearAttention", "jaxlm.speculate"),
        "the recurrence in numpy; no later token moves a bit; tree-verified drafts write the greedy tokens one for one",
    ),
    Row(
        64,
        "End-To-End Memory Networks (Sukhbaatar et al. 2015)",
        ("jaxlm.memory.memn2n.MemN2N", "jaxlm.memory.memn2n_lm.MemN2NLM"),
        "the model in numpy; 20 bAbI tasks; Penn Treebank",
        ("babi", "babi-joint", "babi-10k", "memn2n-ptb"),
    ),
    Row(
        68,
        "In-Context Language Learning: Architectures and Algorithms (Akyürek et al. 2024)",
        ("jaxlm.tasks.in_context", "jaxlm.mixers.ngram_head.NGramHead", "jaxlm.analysis.context_counts"),
        "an n-gram head gives the context's counts to 1e-6; exact n-grams; heads in a gated linear RNN",
        ("icl-languages",),
    ),
    Row(
        78,
        "When can transformers reason with abstract symbols? (Boix-Adsera et al. 2024)",
        ("jaxlm.mixers.identity_attention.IdentityAttention",),
        "the formula in numpy, cut and packed; an MLP stays at chance; unseen symbols with and without the two numbers",
        ("abstract-symbols",),
    ),
    Row(
        83,
        "Quadratic models for understanding neural network dynamics (Zhu et al. 2022)",
        ("jaxlm.theory.catapult", "jaxlm.analysis.taylor"),
        "Taylor models and kernels by hand; the table of outcomes by step size; loss and curvature from two numbers",
        ("catapult",),
    ),
    Row(
        89,
        "MemoryLLM: Towards Self-Updatable Large Language Models (Wang et al. 2024)",
        ("jaxlm.memory.memoryllm.MemoryLLM",),
        "layers composed by hand; a slot survives as (1 - K/N)^n; 10,000 updates; a fact is known after its write",
        ("memoryllm",),
    ),
    Row(
        91,
        "On the Origins of Linear Representations in Large Language Models (Jiang et al. 2024)",
        ("jaxlm.theory.linear_representations",),
        "a linear code has the exact loss; differences of tokens become parallel in part, at width m to above 0.9",
        ("linear-representations",),
    ),
    Row(
        93,
        "M+: Extending MemoryLLM with Scalable Long-Term Memory (Wang et al. 2025)",
        ("jaxlm.memory.m_plus.MPlus",),
        "every dropped slot is in the store; the best, by age, in front; facts known at ten times the pool's distance",
        ("memoryllm",),
    ),
    Row(
        98,
        "Robustly Learning a Single Neuron via Sharpness (Wang et al. 2023)",
        ("jaxlm.theory.single_neuron",),
        "the closed form by samples; error within 1.3 of the best neuron; sharpness along the way",
        ("single-neuron",),
    ),
    Row(
        100,
        "Hierarchically Gated Recurrent Network (Qin et al. 2023)",
        ("jaxlm.mixers.hgrn.HGRN",),
        "scan in numpy, complex and real; floors rise with depth and hold; HGRN2 with one channel a head has its scan",
    ),
    Row(
        101,
        "Superposition Yields Robust Neural Scaling (Liu et al. 2025)",
        ("jaxlm.theory.superposition", "jaxlm.train.optimizers.row_decay"),
        "the decay and the code in numpy; with all rows held the loss falls as 1 / width, else as the frequencies do",
        ("superposition",),
    ),
    Row(
        104,
        "Skip-gram Language Modeling Using Sparse Non-negative Matrix Probability Estimation (Shazeer et al. 2015)",
        ("jaxlm.data.snm.SNM", "jaxlm.data.baselines.KneserNey"),
        "the sum over features with dictionaries; Kneser-Ney is the recursion, 141 on Penn Treebank; skips help",
        ("snm",),
    ),
    Row(
        108,
        "Birth of a Transformer: A Memory Viewpoint (Bietti et al. 2023)",
        ("jaxlm.memory.induction", "jaxlm.memory.bigram_task"),
        "ideal outer products solve the task; order of events and in-context accuracy in training",
        ("birth", "birth-steps"),
    ),
    Row(
        109,
        "ReGLA: Refining Gated Linear Attention (Lu et al. 2025)",
        ("jaxlm.mixers.regla.ReGLA",),
        "recurrent = the paper's form; no later token moves an earlier one; the slope of a saturated gate",
    ),
    Row(
        113,
        "Understanding In-Context Learning in Transformers and LLMs by Learning Discrete Functions (Bhattamishra 2023)",
        ("jaxlm.tasks.boolean", "jaxlm.analysis.boolean"),
        "Bayes is the sum over all conjunctions; two points of a lesson identify one; trained: above nearest neighbour",
        ("boolean-functions",),
    ),
    Row(
        117,
        "Advancing Regular Language Reasoning in Linear Recurrent Neural Networks (Fan et al. 2024)",
        ("jaxlm.mixers.regular_lrnn.RegularLRNN",),
        "the recurrence in numpy; norms of its transitions; three regular tasks learned at 40 tokens, asked after 500",
        ("regular-lrnn",),
    ),
    Row(
        120,
        "On the Universality of Linear Recurrences Followed by Nonlinear Projections (Orvieto et al. 2023)",
        ("jaxlm.theory.window_universality",),
        "the state in numpy; a linear map rebuilds the window or leaves exactly 1 - 2n / L; MLPs over their bound",
        ("window-universality",),
    ),
    Row(
        123,
        "Memory Networks (Weston et al. 2015)",
        ("jaxlm.memory.memnn.MemNN", "jaxlm.data.world"),
        "scores and margin loss in numpy; the simulated world: two supporting facts solved, one far below",
        ("memnn-world",),
    ),
    Row(
        124,
        "How Do Transformers Learn Topic Structure: Towards a Mechanistic Understanding (Li et al. 2023)",
        ("jaxlm.theory.topic_structure", "jaxlm.analysis.topics", "jaxlm.data.topics"),
        "the best map of masked words in closed form, long documents and short; embeddings and attention find topics",
        ("topic-structure",),
    ),
    Row(
        125,
        "LSTM: A Search Space Odyssey (Greff et al. 2015)",
        ("jaxlm.mixers.odyssey_lstm.OdysseyLSTM",),
        "all nine cells in numpy, their limits as equalities, exact counts; a long lag without each part of the cell",
        ("odyssey",),
    ),
    Row(
        126,
        "Scaling Laws for Associative Memories (Cabannes et al. 2024)",
        ("jaxlm.memory.outer",),
        "exponents of every storage scheme; the published grid of trained memories",
        ("memory-scaling", "memory-training"),
    ),
    Row(
        128,
        "A Solvable Model of Neural Scaling Laws (Maloney et al. 2022)",
        ("jaxlm.analysis.random_features",),
        "the closed forms agree and limit as they should; loss measured at 40 pairs of N and T; the slopes, a plateau",
        ("solvable-scaling",),
    ),
    Row(
        129,
        "HGRN2: Gated Linear RNNs with State Expansion (Qin et al. 2024)",
        ("jaxlm.mixers.hgrn2.HGRN2",),
        "the recurrence in numpy; chunked equals recurrent; the lower bound rises with depth",
    ),
    Row(
        138,
        "LM2: Large Memory Models (Kang et al. 2025), and the Recurrent Memory Transformer (Bulatov et al. 2022)",
        ("jaxlm.memory.lm2.LM2", "jaxlm.memory.rmt.RMT"),
        "equations in numpy; a closed output gate is the base; from an identity bank to stories longer than the window",
        ("lm2",),
    ),
    Row(
        141,
        "On the Benefits of Biophysical Synapses (Lemmel & Grosu 2023)",
        ("jaxlm.mixers.ltc.LTC",),
        "the slope is A(x) x + b(x) in float64; the fused solver in numpy; potentials stay among the reversals",
        ("ltc-fhn",),
    ),
    Row(
        142,
        "TransNormerLLM, lightning attention (Qin et al. 2023)",
        ("jaxlm.mixers.tnl.TNL",),
        "recurrent in numpy; three kinds of LRPE; the last layer hardly decays",
    ),
    Row(
        146,
        "Universal Approximation Theorem for a Single-Layer Transformer (2025)",
        ("jaxlm.theory.universal_attention", "jaxlm.analysis.ngram_compiler"),
        "one layer that gathers four tokens: the largest error on a continuous map falls with width, below 0.01",
        ("universal-attention",),
    ),
    Row(
        149,
        "Reasoning in Large Language Models: A Geometric Perspective (Cosentino & Shekkizhar 2024)",
        ("jaxlm.theory.attention_regions", "jaxlm.analysis.regions"),
        "regions of units in sums of hulls, exactly; crossings on slices are length / π; a sine is fitted better",
        ("attention-regions",),
    ),
    Row(
        150,
        "Why do LLMs attend to the first token? (Barbero et al. 2025)",
        ("jaxlm.theory.first_token_sinks",),
        "influence under a sink as a sum over paths, to 1e-10; begin tokens of trained decoders at contexts 32 and 128",
        ("first-token-sinks",),
    ),
    Row(
        157,
        "Early Neuron Alignment in Two-layer ReLU Networks with Small Initialization (Min et al. 2024)",
        ("jaxlm.theory.neuron_alignment",),
        "alignment before growth, within its bound; the late loss is 1/(t ln 1/L); stable rank at most 2",
        ("neuron-alignment",),
    ),
    Row(
        167,
        "The Expressive Capacity of State Space Models: A Formal Language Perspective (Sarrof et al. 2024)",
        ("jaxlm.theory.ssm_languages", "jaxlm.tasks.formal"),
        "flip-flop and parity by hand at 1,000 tokens; gates in [0, 1] attain their bound on ones",
        ("ssm-languages",),
    ),
    Row(
        173,
        "Set-Based Prompting: Provably Solving the Language Model Order Dependency Problem (McIlroy-Young et al. 2024)",
        ("jaxlm.models.sets.set_prompt", "jaxlm.layers.position.Sets"),
        "equal logits for every order of the sets under Rope, ALiBi and learned positions; one set is the plain prompt",
    ),
    Row(
        177,
        "Transformer Feed-Forward Layers Are Key-Value Memories (Geva et al. 2021)",
        ("jaxlm.lenses.key_value",),
        "output is the sum of coefficient times value rows; triggers share patterns more than chance",
        ("ffn-memory",),
    ),
    Row(
        181,
        "Extending Memory for Language Modelling (Nugaliyadde 2023)",
        ("jaxlm.mixers.ltm.LTM",),
        "the cell in numpy; bounded over 10,000 tokens; from its first weights the first of 500 has a gradient",
    ),
    Row(
        191,
        "Neural Networks Generalize on Low Complexity Data (Chatterjee & Sudijono 2024)",
        ("jaxlm.analysis.programs", "jaxlm.analysis.boolean_trees"),
        "primality compiled into ReLU layers, right to 200; Occam's bound; short trees generalise, wide nets do not",
        ("short-programs",),
    ),
    Row(
        197,
        "Memory-Based Meta-Learning on Non-Stationary Distributions (Genewein et al. 2023)",
        ("jaxlm.analysis.switching",),
        "PTW and LIN are probabilities and equal their definitions; seven mixers learn to be LIN on its own source",
        ("switching-sources",),
    ),
    Row(
        198,
        "LM-Infinite: Simple On-the-Fly Length Generalization for Large Language Models (Han et al. 2024)",
        ("jaxlm.mixers.sinks.LambdaAttention", "jaxlm.mixers.sinks.SinkAttention"),
        "the mask and the limited distance in numpy, cut and packed; up to the window it is attention",
    ),
    Row(
        199,
        "Log-Linear Attention (Guo et al. 2025)",
        (
            "jaxlm.ops.fenwick",
            "jaxlm.mixers.log_linear.LogLinearMamba2",
            "jaxlm.mixers.log_linear.LogLinearGatedDeltaNet",
        ),
        "chunked = token by token = the masked product; live states at most log2 T + 1; weights of 1 give the parent",
    ),
    Row(
        220,
        "MLP Memory: Language Modeling with Retriever-pretrained External Memory (2025)",
        ("jaxlm.memory.mlp_memory",),
        "the stack and its loss in numpy; nearer to the kNN votes than the base, and nearly as good as they",
        ("knn-lm",),
    ),
    Row(
        229,
        "Unfamiliar Finetuning Examples Control How Language Models Hallucinate (Kang et al. 2024)",
        ("jaxlm.theory.unfamiliar_examples",),
        "synthetic facts: the rarer an entity, the nearer the answer is to the labels of unfamiliar examples",
        ("unfamiliar-examples",),
    ),
    Row(
        233,
        "Recurrent Neural Networks Learn to Store and Generate Sequences using Non-Linear... (Csordás et al. 2024)",
        ("jaxlm.theory.onion",),
        "planted onions peel off exactly up to ratio 1/2; a small GRU edited layer by layer, or by linear swaps",
        ("onion",),
    ),
)
