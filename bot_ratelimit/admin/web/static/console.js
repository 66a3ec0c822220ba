// Adds liveness to pages that work without it: what has `data-live` is kept up to date, and times
// are shown in the zone of the reader.
"use strict";

const AT_MOST_EVERY = 1500; // ms between two looks
const TRY_AGAIN = 10000; // ms, when the server would not let us follow

// --- times ------------------------------------------------------------------------------------

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const pad = (number) => String(number).padStart(2, "0");

function localize(root) {
  for (const each of root.querySelectorAll("time[data-shows]")) {
    const at = new Date(each.dateTime);
    const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}`;
    const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
    each.textContent = each.dataset.shows === "hour" ? clock : `${day} ${clock}`;
    if (each.dataset.shows === "second") each.textContent += `:${pad(at.getSeconds())}`;
  }
  for (const each of root.querySelectorAll("[data-zone]")) each.textContent = zone;
}

// --- what changes -----------------------------------------------------------------------------

// Makes one element like another, and leaves alone what is alike: focus, selection, what is folded
// out, and bars that grow from where they stand.
function become(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  after.forEach((node, i) => (i < before.length ? become(before[i], node) : old.append(node)));
  before.slice(after.length).forEach((node) => node.remove());
}

// Whether it went well. A page without the sign is that for logging in: the session has ended.
async function refresh() {
  const answer = await fetch(location.href);
  if (answer.status >= 500) return false;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!page.getElementById("liveness")) {
    location.reload();
    return false;
  }
  localize(page);
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (fresh) become(old, fresh);
  }
  return true;
}

function follow(sign) {
  let due = false;
  let looking = false;
  const say = (on) => {
    const words = on ? "Live" : "Not live";
    sign.hidden = false;
    sign.classList.toggle("on", on);
    if (sign.textContent !== words) sign.textContent = words;
  };
  const look = async () => {
    if (looking || !due || document.hidden) return;
    looking = true;
    due = false;
    say(await refresh().catch(() => false));
    setTimeout(() => {
      looking = false;
      look();
    }, AT_MOST_EVERY);
  };
  const told = () => {
    due = true;
    look();
  };
  const open = () => {
    const events = new EventSource("events");
    events.onmessage = told;
    events.onerror = () => {
      say(false);
      if (events.readyState !== EventSource.CLOSED) return; // it tries again by itself
      told();
      setTimeout(open, TRY_AGAIN);
    };
  };
  open();
  document.addEventListener("visibilitychange", look);
}

// --- inside Telegram --------------------------------------------------------------------------

// Telegram puts what proves the user into the fragment of the address; no script of its is needed.
function enter(form) {
  const proof = new URLSearchParams(location.hash.slice(1)).get("tgWebAppData");
  if (!proof) return;
  history.replaceState(null, "", location.pathname + location.search);
  if (form.dataset.by === `${userOf(proof)}@web`) return; // whose session goes on
  form.elements.init_data.value = proof;
  form.hidden = false;
  form.submit();
}

function userOf(proof) {
  try {
    return JSON.parse(new URLSearchParams(proof).get("user")).id;
  } catch {
    return undefined;
  }
}

// ----------------------------------------------------------------------------------------------

// The first change of all takes some seconds: what was sent is not sent again meanwhile.
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
});
addEventListener("pageshow", () => {
  for (const sent of document.querySelectorAll("[data-sent]")) delete sent.dataset.sent;
});

localize(document);
const form = document.getElementById("telegram");
if (form) enter(form);
const sign = document.getElementById("liveness");
if (sign && document.querySelector("[data-live]")) follow(sign);
