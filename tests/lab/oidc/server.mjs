// An OpenID provider whose token endpoint gives clients tokens for Kafka: node server.mjs '{"port", "lifetime", "clients", "audience"}'
import { Provider } from 'oidc-provider';

const { port, lifetime, clients, audience } = JSON.parse(process.argv[2]);
const resourceServer = {
  scope: 'kafka', audience, accessTokenFormat: 'jwt', accessTokenTTL: lifetime, jwt: { sign: { alg: 'RS256' } },
};
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: clients.map((client) => ({
    redirect_uris: [], response_types: [], grant_types: ['client_credentials'], ...client,
  })),
  scopes: ['kafka'],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true, defaultResource: () => audience, getResourceServerInfo: () => resourceServer,
    },
  },
});
provider.listen(port, '127.0.0.1');
