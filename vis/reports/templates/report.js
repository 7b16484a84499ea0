"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Filters: a claim is shown if its kind, verdict and text fit, an item if one of its claims is. The state is in the address.
const form = document.getElementById("filters");
if (form) {
  const items = all(".item"), papers = all(".paper"), total = all(".claim").length, names = all("[name]", form).map(f => f.name);
  const text = new Map([...items, ...all(".claim")].map(e => [e, e.textContent.toLowerCase()]));
  const head = new Map(items.map(i => [i, [i.id, i.querySelector("h3").textContent, i.dataset.methods].join(" ").toLowerCase()]));
  const apply = () => {
    const want = Object.fromEntries(new FormData(form)), words = want.q.toLowerCase().split(/\s+/).filter(Boolean);
    const holds = where => words.every(word => where.includes(word));
    let shown = 0;
    for (const item of items) {
      const own = all(".claim", item), named = holds(head.get(item));
      const fits = (!want.paper || want.paper === item.dataset.paper) && (!want.method || item.dataset.methods.split(" ").includes(want.method));
      let some = 0;
      for (const claim of own) {
        const seen = fits && (!want.kind || want.kind === claim.dataset.kind) && (!want.verdict || want.verdict === claim.dataset.verdict) && (named || holds(head.get(item) + " " + text.get(claim)));
        claim.hidden = !seen;
        some += seen;
      }
      for (const group of all(".group", item)) group.hidden = !group.querySelector(".claim:not([hidden])");
      item.hidden = !(some || (fits && !want.kind && !want.verdict && holds(text.get(item))));
      if (!item.hidden && !some && words.length) for (const e of all(".claim, .group", item)) e.hidden = false;
      shown += some;
    }
    for (const paper of papers) paper.hidden = !paper.querySelector(".item:not([hidden])");
    const left = items.filter(item => !item.hidden).length;
    form.querySelector("output").textContent = `${left} of ${items.length} items, ${shown} of ${total} claims`;
    return Object.entries(want).filter(([, value]) => value).map(pair => pair.map(encodeURIComponent).join("=")).join("&");
  };
  const read = () => {
    const hash = location.hash.slice(1), target = document.querySelector(":target");
    if (hash.includes("=")) {
      const given = new URLSearchParams(hash);
      for (const name of names) form.elements[name].value = given.get(name) || "";
      apply();
    } else if (target && target.closest("[hidden]")) {
      form.reset();
      apply();
      target.scrollIntoView();
    }
  };
  const write = () => history.replaceState(null, "", "#" + apply());
  form.hidden = false;
  form.addEventListener("input", write);
  form.addEventListener("reset", () => setTimeout(write));
  form.addEventListener("submit", event => event.preventDefault());
  const more = form.querySelector(".more");
  more.addEventListener("click", () => more.setAttribute("aria-expanded", form.querySelector(".choices").classList.toggle("open")));
  for (const link of all("[data-filter]")) link.addEventListener("click", event => {
    event.preventDefault();
    location.hash = link.dataset.filter;
    form.scrollIntoView();
  });
  addEventListener("hashchange", read);
  apply();
  read();
}

// Pictures open large; arrow keys go on among those that are shown, Escape closes.
const viewer = document.getElementById("viewer"), image = new Image();
viewer.querySelector(".stage").append(image);
let current;
const open = link => {
  current = link;
  const small = link.querySelector("img"), links = all(".picture").filter(each => !each.closest("[hidden]"));
  image.src = small.src;
  image.alt = small.alt.replace(": open it large", "");
  image.className = small.naturalHeight > 1.4 * small.naturalWidth ? "" : "fit";
  viewer.querySelector(".caption").textContent = image.alt + ". " + link.parentElement.querySelector("figcaption").textContent;
  viewer.querySelector(".number").textContent = `${links.indexOf(link) + 1} of ${links.length}`;
  viewer.querySelector(".file").href = link.href;
  viewer.querySelector(".stage").scrollTop = 0;
  if (!viewer.open) viewer.showModal();
};
const go = step => {
  const links = all(".picture").filter(each => !each.closest("[hidden]"));
  open(links[(links.indexOf(current) + step + links.length) % links.length]);
};
for (const link of all(".picture")) link.addEventListener("click", event => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  open(link);
});
viewer.querySelector(".previous").addEventListener("click", () => go(-1));
viewer.querySelector(".next").addEventListener("click", () => go(1));
viewer.querySelector(".close").addEventListener("click", () => viewer.close());
viewer.addEventListener("keydown", event => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) { event.preventDefault(); go(step); }
});
viewer.addEventListener("close", () => current.focus());

for (const button of all(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
