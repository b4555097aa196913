"use strict";
(function () {
  document.documentElement.classList.remove("no-js");

  // Legend: hide and show a model in every figure.
  const buttons = Array.from(document.querySelectorAll(".legend button"));
  buttons.forEach(function (button) {
    button.addEventListener("click", function () {
      const shown = button.getAttribute("aria-pressed") !== "true";
      const rung = button.dataset.rung;
      buttons.forEach(function (other) {
        if (other.dataset.rung === rung) other.setAttribute("aria-pressed", String(shown));
      });
      document.querySelectorAll('.plot g[data-rung="' + CSS.escape(rung) + '"]').forEach(function (group) {
        group.style.display = shown ? "" : "none";
      });
    });
  });

  // Token order: a slider over the steps that are embedded.
  const order = JSON.parse(document.getElementById("order-data").textContent);
  const byId = function (id) { return document.getElementById(id); };
  const slider = byId("step-slider"), list = byId("batch");

  function element(name, className, text) {
    const made = document.createElement(name);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function rowItem(row, number) {
    const item = document.createElement("li");
    const body = document.createElement("div");
    const documents = row[1].map(function (d) { return order.documents[d][1]; });
    body.append(element("span", "doc", documents.join(" + ")), element("span", "text", row[2]));
    const losses = element("span", "losses");
    row[3].forEach(function (loss) {
      losses.append(element("span", "", loss === null ? "–" : loss.toFixed(2)));
    });
    item.append(element("span", "row", String(number)), body, losses);
    return item;
  }

  function sources(rows) {
    const counts = new Map();
    rows.forEach(function (row) {
      const source = order.documents[row[1][0]][0];
      counts.set(source, (counts.get(source) || 0) + 1);
    });
    return Array.from(counts).sort(function (a, b) { return b[1] - a[1]; })
      .map(function (pair) { return pair[0] + " " + pair[1]; }).join(" · ");
  }

  function show(index) {
    const entry = order.sample[index];
    slider.value = String(index);
    slider.setAttribute("aria-valuetext", "step " + entry.step);
    byId("step-name").textContent = "Step " + entry.step;
    byId("step-sources").textContent = sources(entry.rows);
    byId("step-leaf").textContent = entry.leaf;
    byId("previous").disabled = index === 0;
    byId("next").disabled = index === order.sample.length - 1;
    list.replaceChildren.apply(list, entry.rows.map(rowItem));
    list.scrollTop = 0;
  }

  function move(by) {
    const last = order.sample.length - 1;
    show(Math.min(last, Math.max(0, Number(slider.value) + by)));
  }

  slider.addEventListener("input", function () { show(Number(slider.value)); });
  byId("previous").addEventListener("click", function () { move(-1); });
  byId("next").addEventListener("click", function () { move(1); });
  show(0);
})();
