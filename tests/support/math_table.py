"""(response, answer, expected) for the verifier ``math``, by the formats of public answer keys.

Rows under OURS are those where math-verify alone says otherwise; what is expected there is what we decided.
"""

from __future__ import annotations

Row = tuple[str, str, int]

NUMBERS: list[Row] = [
    (r"so \boxed{42}", "42", 1),
    (r"\boxed{41} no, \boxed{42}", "42", 1),
    (r"\boxed{42} no, \boxed{41}", "42", 0),
    (r"\boxed{-5}", "-5", 1),
    (r"\boxed{5}", "-5", 0),
    (r"\boxed{+5}", "5", 1),
    (r"\boxed{007}", "7", 1),
    (r"\boxed{1,234}", "1234", 1),
    (r"\boxed{1{,}234}", "1,234", 1),
    (r"\boxed{14{,}916}", "14916", 1),
    (r"\boxed{1,234,567.5}", "1234567.5", 1),
    (r"\boxed{1000.0}", "1000", 1),
    (r"\boxed{.5}", r"\frac{1}{2}", 1),
    (r"\boxed{0.5}", r"\frac12", 1),
    (r"\boxed{1.5\times 10^{3}}", "1500", 1),
    (r"\boxed{2^{10}}", "1024", 1),
    (r"\boxed{1234567}", "1234568", 0),
    (r"\boxed{100000000000000000001}", "100000000000000000000", 0),
    (r"\boxed{3.14}", r"\pi", 0),
    (r"\boxed{3.141593}", r"\pi", 1),
    (r"\boxed{0.333333}", r"\frac{1}{3}", 1),
    (r"\boxed{0.33}", r"\frac{1}{3}", 0),
    (r"\boxed{0}", "0.0000001", 0),
]

FRACTIONS: list[Row] = [
    (r"\boxed{\frac{1}{2}}", "0.5", 1),
    (r"\boxed{\dfrac{3}{4}}", r"\frac{3}{4}", 1),
    (r"\boxed{\tfrac34}", "3/4", 1),
    (r"\boxed{\cfrac{6}{8}}", r"\frac{3}{4}", 1),
    (r"\boxed{6/8}", r"\frac{3}{4}", 1),
    (r"\boxed{\frac{-3}{4}}", r"-\frac{3}{4}", 1),
    (r"\boxed{\frac{3}{-4}}", r"-\frac{3}{4}", 1),
    (r"\boxed{-\frac{3}{4}}", r"\frac{3}{4}", 0),
    (r"\boxed{\frac{4}{3}}", r"\frac{3}{4}", 0),
    (r"\boxed{1\frac{1}{2}}", "3/2", 1),
    (r"\boxed{1\frac{1}{2}}", r"1\frac{1}{2}", 1),
    (r"\boxed{-1\frac{1}{2}}", "-1.5", 1),
    (r"\boxed{1 1/2}", "1.5", 1),
    (r"\boxed{11/2}", r"1\frac{1}{2}", 0),
    (r"\boxed{\frac{\frac{1}{2}}{3}}", r"\frac{1}{6}", 1),
    (r"\boxed{\frac{1}{0}}", "0", 0),
]

ROOTS_AND_PI: list[Row] = [
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", 1),
    (r"\boxed{\sqrt3}", r"\sqrt{3}", 1),
    (r"\boxed{\frac{\sqrt{3}}{3}}", r"\frac{1}{\sqrt{3}}", 1),
    (r"\boxed{\sqrt[3]{8}}", "2", 1),
    (r"\boxed{1+\sqrt{2}}", r"\sqrt{2} + 1", 1),
    (r"\boxed{\sqrt{2}}", r"\sqrt{3}", 0),
    (r"\boxed{2\pi}", r"2 \pi", 1),
    (r"\boxed{\frac{4\pi}{2}}", r"2\pi", 1),
    (r"\boxed{6.283185}", r"2\pi", 1),
    (r"\boxed{\pi}", r"2\pi", 0),
    (r"\boxed{\frac{\pi}{2}}", r"\frac{1}{2}\pi", 1),
]

EXPRESSIONS: list[Row] = [
    (r"\boxed{x+1}", "1+x", 1),
    (r"\boxed{(x+1)^2}", "x^2+2x+1", 1),
    (r"\boxed{x^2+2x+2}", "x^2+2x+1", 0),
    (r"\boxed{2-2p}", "2-2p", 1),
    (r"\boxed{-2p+2}", "$2-2p$", 1),
    (r"\boxed{\frac{x}{2}}", "0.5x", 1),
    (r"\boxed{2n(n+1)}", "2n^2+2n", 1),
    (r"\boxed{e^{2x}}", r"e^{2x}", 1),
    (r"\boxed{\log 2}", r"\log 3", 0),
    (r"\boxed{\sin x}", r"\cos x", 0),
    (r"\boxed{y = 2x+1}", "y=2x+1", 1),
    (r"\boxed{2x+1}", "y=2x+1", 1),
    (r"\boxed{x = 5}", "5", 1),
    (r"\boxed{5}", "x=5", 1),
    (r"\boxed{x=6}", "x=5", 0),
    (r"\boxed{3+4i}", "4i+3", 1),
    (r"\boxed{3-4i}", "3+4i", 0),
    (r"\boxed{|x|}", "x", 0),
    (r"\boxed{2\cdot 3^{5}}", "486", 1),
    (r"\boxed{5!}", "120", 1),
    (r"\boxed{\binom{5}{2}}", "10", 1),
]

SETS: list[Row] = [
    (r"\boxed{[0,1)}", "[0,1)", 1),
    (r"\boxed{\left[0, 1\right)}", "[0,1)", 1),
    (r"\boxed{(0,1)}", "[0,1)", 0),
    (r"\boxed{[0,2)}", "[0,1)", 0),
    (r"\boxed{(-\infty, 3]}", r"(-\infty,3]", 1),
    (r"\boxed{(-\infty,-1)\cup(1,\infty)}", r"(-\infty,-1)\cup(1,\infty)", 1),
    (r"\boxed{(1,\infty)\cup(-\infty,-1)}", r"(-\infty,-1)\cup(1,\infty)", 1),
    (r"\boxed{x \in [0,1)}", "[0,1)", 1),
    (r"\boxed{\{1,2,3\}}", r"\{3,2,1\}", 1),
    (r"\boxed{\{1,2\}}", r"\{1,2,3\}", 0),
    (r"\boxed{1, 2, 3}", "1,2,3", 1),
    (r"\boxed{3, 1, 2}", "1,2,3", 1),
    (r"\boxed{1,2}", "1,2,3", 0),
    (r"\boxed{\{\frac{1}{2}, 2\}}", "0.5, 2", 1),
    (r"\boxed{2\pm\sqrt{3}}", r"2+\sqrt{3}, 2-\sqrt{3}", 1),
    (r"\boxed{\emptyset}", r"\emptyset", 1),
    (r"\boxed{x>2}", "x > 2", 1),
    (r"\boxed{x<2}", "x > 2", 0),
    (r"\boxed{1} and \boxed{2}", "1, 2", 1),
    (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", "1,2,3", 1),
    (r"\boxed{1}, so then \boxed{2}", "2", 1),
]

TUPLES: list[Row] = [
    (r"\boxed{(1,2)}", "(1,2)", 1),
    (r"\boxed{(1, 2)}", r"\left(1,2\right)", 1),
    (r"\boxed{(2,1)}", "(1,2)", 0),
    (r"\boxed{(1,2,3)}", "(1,2)", 0),
    (r"\boxed{(3, \frac{\pi}{2})}", r"\left(3,\frac{\pi}{2}\right)", 1),
    (r"\boxed{(0.5, 1)}", r"\left(\frac{1}{2}, 1\right)", 1),
    (r"\boxed{(1,2),(3,4)}", "(1,2),(3,4)", 1),
    (r"\boxed{(3,4),(1,2)}", "(1,2),(3,4)", 1),
    (r"\boxed{(1,4),(3,2)}", "(1,2),(3,4)", 0),
]

MATRICES: list[Row] = [
    (r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 1),
    (r"\boxed{\begin{pmatrix}1&2\\3&\frac{8}{2}\end{pmatrix}}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 1),
    (r"\boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 1),
    (r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 0),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix} 1 & 2 \end{pmatrix}", 0),
]

UNITS: list[Row] = [
    (r"\boxed{12 \text{ cm}}", "12", 1),
    (r"\boxed{12}", r"12\text{ cm}", 1),
    (r"\boxed{12 \text{ cm}^2}", "12", 1),
    (r"\boxed{12\mathrm{~cm}}", "12", 1),
    (r"\boxed{12\text{ meters}}", r"12 \text{ m}", 1),
    (r"\boxed{13 \text{ cm}}", "12", 0),
    (r"\boxed{12_5}", "12", 0),
    (r"\boxed{12}", "12_5", 1),
    (r"\boxed{90^\circ}", "90", 1),
    (r"\boxed{90}", r"90^{\circ}", 1),
    (r"\boxed{\$5.50}", "5.50", 1),
    (r"\boxed{5.5}", r"\$5.50", 1),
    (r"\boxed{2\sqrt{5}\text{ units}}", r"2\sqrt{5}", 1),
    (r"\boxed{50}", r"50\%", 1),
    (r"\boxed{50\%}", r"50\%", 1),
    (r"\boxed{40\%}", r"50\%", 0),
]

TEXTS: list[Row] = [
    (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", 1),
    (r"\boxed{Evelyn}", r"\text{Evelyn}", 1),
    (r"\boxed{\text{evelyn}}", r"\text{Evelyn}", 1),
    (r"\boxed{\textbf{Evelyn}}", r"\text{Evelyn}", 1),
    (r"\boxed{\text{silent}}", r"\text{listen}", 0),
    (r"\boxed{\text{Navin}}", r"\text{Evelyn}", 0),
    (r"\boxed{\text{(C)}}", "C", 1),
    (r"\boxed{C}", r"\text{(C)}", 1),
    (r"\boxed{\text{odd}}", r"\text{even}", 0),
    (r"\boxed{\text{two}}", "2", 0),
    (r"\boxed{12_{5}}", "12_5", 1),
    (r"\boxed{\text{June 20}}", r"\text{June 20}", 1),
    (r"\boxed{10:45}", "10:45", 1),
]

PLACES: list[Row] = [
    ("", "42", 0),
    ("42", "42", 0),
    (r"\boxed{42", "42", 0),
    (r"\boxed{42} and \boxed{4", "42", 0),
    (r"\boxed{}", "42", 0),
    ("<answer>42</answer>", "42", 1),
    (r"<answer>$\frac{1}{2}$</answer>", "0.5", 1),
    (r"<answer>41</answer> \boxed{42}", "42", 1),
    ("Final Answer: The final answer is $42$. I hope it is correct.", "42", 1),
    ("The answer is 42.", "42", 1),
    ("The answer is: $x^2+1$", "1+x^2", 1),
    ("The answer is 42. No, the answer is 43.", "42", 0),
    (r"\boxed{42}", "Natalia sold 21*2 = 42 clips.\n#### 42", 1),
    (r"\boxed{42}", r"We have $6 \cdot 7 = \boxed{42}$.", 1),
    (r"\boxed{42}", "$42$", 1),
    (r"\fbox{42}", "42", 1),
]

OURS: list[Row] = [
    (r"\boxed{10\text{ million}}", "10", 0),  # it leaves out every word as a unit
    (r"\boxed{50\%}", "50", 1),  # it takes a percentage for its share of 1 only
    (r"\boxed{0.5}", r"50\%", 1),
    (r"\boxed{50\%}", r"\frac{1}{2}", 1),
    (r"\boxed{\frac{100}{3}\%}", r"33\frac{1}{3}\%", 1),
    (r"\boxed{12_{6}}", "12_5", 0),  # it leaves out bases
    (r"\boxed{silent}", "listen", 0),  # a product of the same letters
    (r"\boxed{0.0000001}", "0.0000002", 0),  # equal when rounded to six decimals
]

TABLE = [
    *NUMBERS, *FRACTIONS, *ROOTS_AND_PI, *EXPRESSIONS, *SETS, *TUPLES, *MATRICES, *UNITS, *TEXTS, *PLACES, *OURS,
]  # fmt: skip
