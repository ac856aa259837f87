/** Opens the stream of the view in the address before the other modules load, so that the agent encodes the state meanwhile. */

import { openEarly } from "./event-stream.js";
import { parseHash, streamUrl } from "./view-address.js";

openEarly(streamUrl(parseHash(location.hash)?.path ?? []));
