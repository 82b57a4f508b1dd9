(() => {
  const list = document.getElementById("items");
  const items = [...list.children];
  const field = id => document.getElementById(id);
  const number = (item, key) => item.dataset[key] === "" ? -Infinity : Number(item.dataset[key]);
  const orders = {
    "-score": (a, b) => number(b, "score") - number(a, "score") || number(a, "number") - number(b, "number"),
    score: (a, b) => (a.dataset.score === "") - (b.dataset.score === "") || number(a, "score") - number(b, "score"),
    number: (a, b) => number(a, "number") - number(b, "number"),
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, {numeric: true}),
  };
  const filter = () => {
    const text = field("text").value.toLowerCase(), answer = field("answer").value, only = field("unfamiliar").checked;
    let shown = 0;
    for (const item of items) {
      item.hidden = (answer && item.dataset.answer !== answer) || (only && item.dataset.familiar !== "no")
        || (text && !item.dataset.name.toLowerCase().includes(text));
      shown += !item.hidden;
    }
    field("shown").textContent = `${shown} of ${items.length} images`;
  };
  const sort = () => list.append(...[...items].sort(orders[field("sort").value]));
  field("text").addEventListener("input", filter);
  for (const id of ["answer", "unfamiliar"]) field(id).addEventListener("change", filter);
  field("sort").addEventListener("change", sort);
  field("controls").hidden = false;
  sort();
  filter();
})();
