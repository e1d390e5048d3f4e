// What a mark of a figure stands for, on hover; drawings say it in their labels.

for (const figure of document.querySelectorAll("#figures figure")) {
  figure.addEventListener("pointerover", ({ target }) => {
    const label = target.getAttribute("role") === "graphics-symbol" && target.getAttribute("aria-label");
    if (!label) return hideTip();
    const facts = make("div");
    for (const line of label.split("; ")) facts.append(make("div", "", line));
    placeTip(target, [facts]);
  });
  figure.addEventListener("pointerleave", hideTip);
}
