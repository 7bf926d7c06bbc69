// Keeps the page up to date and moves between views without loading it anew. Everything works without this script.
"use strict";

(() => {
  const events = document.body.dataset.events;

  /** The page at `address`, or null when it cannot be had now. */
  async function load(address) {
    try {
      const answer = await fetch(address, { headers: { Accept: "text/html" } });
      return answer.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
    } catch {
      return null;
    }
  }

  /** Put `fresh` where `old` is, and the focus back on the same control. */
  function replace(old, fresh) {
    if (old.outerHTML === fresh.outerHTML) return;
    const focus = old.contains(document.activeElement) ? place(document.activeElement) : null;
    if (old.querySelector("details[open]")) fresh.querySelector("details")?.setAttribute("open", "");
    old.replaceWith(document.adoptNode(fresh));
    if (focus) [...fresh.querySelectorAll(focus.selector)].find((one) => place(one).text === focus.text)?.focus();
  }

  function place(element) {
    const selector = element.tagName.toLowerCase();
    return { selector, text: element.dataset.soft === undefined && element.getAttribute("href") || element.textContent };
  }

  const subjects = (root) =>
    new Map([...root.querySelectorAll(".messages a")].map((row) => [row.href, row.querySelector(".subject").textContent]));

  /** Tell those who do not see it what has come. */
  function announce(before) {
    const added = [...subjects(document)].filter(([address]) => !before.has(address));
    if (added.length) document.getElementById("news").textContent = `New mail: ${added.map((one) => one[1]).join(", ")}`;
  }

  let refreshing = false;
  let again = false;

  /** Bring what is live up to date; changes that come meanwhile are asked for together, afterwards. */
  async function refresh() {
    again = refreshing;
    if (refreshing) return;
    refreshing = true;
    await update();
    refreshing = false;
    if (again) refresh();
  }

  async function update() {
    const page = await load(location.href);
    if (!page) return;
    const before = subjects(document);
    for (const old of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(old.id);
      if (fresh) replace(old, fresh);
    }
    document.title = page.title;
    announce(before);
  }

  let source = null;

  // A browser opens only six connections to one server, so a tab that nobody looks at gives its own back.
  function connect() {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (events !== undefined && !source) {
      source = new EventSource(events);
      source.onopen = refresh;
      source.onmessage = refresh;
    }
  }

  document.addEventListener("visibilitychange", connect);
  window.addEventListener("pagehide", () => source?.close());
  connect();

  document.addEventListener("click", async (click) => {
    const link = click.target.closest("a[data-soft]");
    if (!link || click.ctrlKey || click.metaKey || click.shiftKey || click.button) return;
    click.preventDefault();
    const page = await load(link.href);
    const view = document.getElementById("view");
    const fresh = page?.getElementById("view");
    if (!fresh) {
      location.assign(link.href);
      return;
    }
    history.replaceState(null, "", link.href);
    replace(view, fresh);
  });

  document.addEventListener("keydown", (key) => {
    const row = key.target.closest?.(".messages li");
    const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[key.key];
    if (!row || !next) return;
    key.preventDefault();
    row[next]?.querySelector("a").focus();
  });
})();
